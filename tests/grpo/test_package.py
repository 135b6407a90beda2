"""What is sent to a cluster: code, configs and small data; no runs, models, data sets, secrets or caches."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo.jobs import package
from grpo.jobs.package import PACKAGES, make_package, wanted
from sandbox.errors import UserError


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_runs_models_data_and_hidden_files_stay_here(tmp_path: Path):
    sent = ["a.toml", "configs/b.toml", "my_rules.py", "requirements/cuda.lock", "tasks.jsonl", ".gitignore", ".rayignore"]
    fill(tmp_path, *sent)
    fill(tmp_path, "runs/a/model/config.json", "data/big.jsonl", "sub/data/x.jsonl", ".venv/bin/python", ".git/HEAD", ".env")
    fill(tmp_path, "model.safetensors", "rows.parquet", "wandb/run/log", "__pycache__/a.pyc", "x.egg-info/PKG-INFO", ".netrc")
    (tmp_path / "linked").symlink_to("/usr")
    (tmp_path / "gone").symlink_to("/nowhere")
    assert sorted(map(str, wanted(tmp_path))) == sorted(sent)


def test_the_code_that_runs_here_goes_along_whatever_lies_there(tmp_path: Path):
    fill(tmp_path / "here", "a.toml", "grpo/cli.py", "grpo/of_another_version.py")
    made = make_package(tmp_path / "here", tmp_path / "package")
    assert (made.folder / "a.toml").is_file()
    for name in PACKAGES:
        assert (made.folder / name / "__init__.py").is_file()
    assert (made.folder / "grpo/cli.py").read_bytes() == (package.code_root() / "grpo/cli.py").read_bytes()
    assert not (made.folder / "grpo/of_another_version.py").exists()
    assert not list(made.folder.rglob("__pycache__"))


def test_a_large_file_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(package, "MAX_FILE_BYTES", 10)
    fill(tmp_path / "here", "a.toml", "much/too_long.jsonl")
    made = make_package(tmp_path / "here", tmp_path / "package")
    assert made.left_out == {"much/too_long.jsonl": 19}
    assert not (made.folder / "much").exists()


def test_too_much_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(package, "MAX_PACKAGE_BYTES", 10)
    fill(tmp_path / "here", "a.toml", "b.toml")
    with pytest.raises(UserError, match=r"exceeds .* at b\.toml.*\.rayignore"):
        make_package(tmp_path / "here", tmp_path / "package")
