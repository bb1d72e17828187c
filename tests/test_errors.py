from __future__ import annotations

import pytest
from torch.utils.data import DataLoader, Dataset

from af.cli.main import main
from af.data.checks import ShardError
from af.errors import UserError


class Broken(Dataset):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        try:
            raise OSError("no route\nto it")
        except OSError as error:
            raise self.error from error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("the store is away:\ntry again"), "the store is away:\ntry again"),
        (ShardError("a.tar", "b", "cut", "UserError: is cut off"), "a.tar: b: UserError: is cut off"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_is_its_text_alone_wherever_it_was_raised(error, text, workers, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("af.evaluation.runs.find_runs", lambda *_: list(DataLoader(Broken(error), num_workers=workers)))
    assert main(["report", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"af report: {text}\n"


def test_other_errors_keep_their_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "af.evaluation.runs.find_runs", lambda *_: list(DataLoader(Broken(KeyError("x")), num_workers=1))
    )
    with pytest.raises(KeyError, match="Caught KeyError"):
        main(["report", str(tmp_path)])
