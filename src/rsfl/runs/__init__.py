"""Certifying whole test sets: runs that can be interrupted and resumed, and their summaries."""

from rsfl.runs.curves import (
    Certified,
    accuracy_interval,
    average_certified_radius,
    certified_accuracy,
    certified_rate,
    envelope,
    high_probability_accuracy,
)
from rsfl.runs.inputs import Mapped, example, peeked
from rsfl.runs.job import Interrupted, certify
from rsfl.runs.joint import joint_accuracy, joint_table, plot_joint
from rsfl.runs.log import Directory, Record, load
from rsfl.runs.orbits import OrbitRun, certify_orbits, load_orbits
from rsfl.runs.page import evidence
from rsfl.runs.plots import plot_certified_accuracy
from rsfl.runs.report import Run, as_json, as_text, read_runs
from rsfl.runs.settings import machine
from rsfl.runs.tables import Published, read_tsv, to_dataframe, write_tsv

__all__ = [
    "Certified",
    "Directory",
    "Interrupted",
    "Mapped",
    "OrbitRun",
    "Published",
    "Record",
    "Run",
    "accuracy_interval",
    "as_json",
    "as_text",
    "average_certified_radius",
    "certified_accuracy",
    "certified_rate",
    "certify",
    "certify_orbits",
    "envelope",
    "evidence",
    "example",
    "high_probability_accuracy",
    "joint_accuracy",
    "joint_table",
    "load",
    "load_orbits",
    "machine",
    "peeked",
    "plot_certified_accuracy",
    "plot_joint",
    "read_runs",
    "read_tsv",
    "to_dataframe",
    "write_tsv",
]
