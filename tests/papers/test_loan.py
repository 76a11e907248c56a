"""The table of loans: numbers from what training sees, nothing that is known only later, and no
other file."""

import gzip
from pathlib import Path

import pytest
import torch

from benchmarks.papers.loan import loans

HEAD = "amount,grade,delinq_2yrs,zip,same,total_pymnt,last_pymnt_d,addr_state,loan_status"
ROWS = [
    f"{100 * i},{'ABC'[i % 3]},{'' if i % 4 == 0 else i % 4},"
    f"{'z' * (i + 1)},7,{i},2013-01,{'CA' if i % 5 else 'NY'},"
    + ("Fully Paid" if i % 2 else "Charged Off")
    for i in range(60)
]


def write(folder: Path, rows: list[str], head: str = HEAD, name: str = "loans.csv.gz") -> Path:
    data = "\n".join([head, *rows]).encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    return folder


def test_features_are_what_was_known_from_0_to_1(tmp_path: Path) -> None:
    table = loans(write(tmp_path, ROWS), seed=1)
    assert table.names == (
        "amount",
        "grade=A",
        "grade=B",
        "grade=C",
        "delinq_2yrs",
        "delinq_2yrs: none",
    )
    assert table.classes == ("Charged Off", "Fully Paid")
    assert table.x.shape == (48, 6)
    assert table.test_x.shape == (12, 6)
    assert table.x.min() == 0
    assert table.x.amax(dim=0).equal(torch.ones(6, dtype=torch.float64))
    assert table.x[:, 1:4].sum(dim=1).equal(torch.ones(48, dtype=torch.float64))
    assert not table.x[:, 4].mul(table.x[:, 5]).any()


def test_each_loan_keeps_its_label_and_its_state(tmp_path: Path) -> None:
    end = [row.replace(f"{100 * i},", f"{100 * i}.5,", 1) for i, row in enumerate(ROWS)]
    table = loans(write(tmp_path, end, name="loans.csv"), seed=0, share=0.0)
    row = table.x[:, 0].mul(59).round().long()
    assert sorted(row.tolist()) == list(range(60))
    assert table.y.equal(row % 2)
    assert table.states.tolist() == ["CA" if i % 5 else "NY" for i in row.tolist()]
    assert table.x[:, 2].equal((row % 3 == 1).double())


def test_scales_and_words_come_from_training_alone(tmp_path: Path) -> None:
    write(tmp_path, [*ROWS, ROWS[0].replace("0,A", "90000,D", 1)])
    tables = [loans(tmp_path, seed=seed) for seed in range(20)]
    # The one far amount and the one rare grade are either seen in training, or are outside of what
    # is known.
    unseen = [table for table in tables if "grade=D" not in table.names]
    assert 0 < len(unseen) < 20
    for table in unseen:
        far = table.test_x[:, 0] > 1
        assert far.sum() == 1
        assert not table.test_x[far][:, 1:4].any()
    for table in tables:
        assert table.x[:, 0].max() == 1


@pytest.mark.parametrize(
    ("rows", "head", "error", "match"),
    [
        (
            ROWS,
            HEAD.replace("loan_status", "status"),
            ValueError,
            r"got none named \['loan_status'\]",
        ),
        ([*ROWS, "1,2"], HEAD, ValueError, "rows of 9 values"),
        (ROWS[:1], HEAD, ValueError, "at least two rows"),
    ],
)
def test_refuses_another_table(
    tmp_path: Path, rows: list[str], head: str, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        loans(write(tmp_path, rows, head), seed=0)


def test_needs_one_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"one \.csv or \.csv\.gz, got \[\]"):
        loans(tmp_path, seed=0)
    write(write(tmp_path, ROWS), ROWS, name="more.csv")
    with pytest.raises(FileNotFoundError, match=r"got .*loans.*more"):
        loans(tmp_path, seed=0)
