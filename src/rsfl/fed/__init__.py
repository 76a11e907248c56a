"""Federated training on one machine: clients, server, aggregation, faults, simulated attackers, and
a full ledger."""

from rsfl.fed import partition, poison
from rsfl.fed.aggregate import (
    Aggregate,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    Mean,
    Rule,
    TrimmedMean,
)
from rsfl.fed.certificate import PoisoningCertificate, certify, withstood
from rsfl.fed.client import Client, Member, Remote, clients
from rsfl.fed.crfl import largest_backdoors, published
from rsfl.fed.ensemble import GroupVote
from rsfl.fed.group_certificate import GroupCertificate
from rsfl.fed.groups import train_groups
from rsfl.fed.joint import GroupJudge, LinearJudge
from rsfl.fed.ledger import Ledger
from rsfl.fed.personal import PerClient, accuracy, per_client, personalise
from rsfl.fed.pilots import ClipSchedule, pilot
from rsfl.fed.poison import Attack
from rsfl.fed.result import Result, RoundError
from rsfl.fed.server import Server
from rsfl.fed.trainer import SGD, Task

__all__ = [
    "SGD",
    "Aggregate",
    "Attack",
    "Client",
    "ClipSchedule",
    "CoordinateMedian",
    "GeometricMedian",
    "GroupCertificate",
    "GroupJudge",
    "GroupVote",
    "Krum",
    "Ledger",
    "LinearJudge",
    "Mean",
    "Member",
    "PerClient",
    "PoisoningCertificate",
    "Remote",
    "Result",
    "RoundError",
    "Rule",
    "Server",
    "Task",
    "TrimmedMean",
    "accuracy",
    "certify",
    "clients",
    "largest_backdoors",
    "partition",
    "per_client",
    "personalise",
    "pilot",
    "poison",
    "published",
    "train_groups",
    "withstood",
]
