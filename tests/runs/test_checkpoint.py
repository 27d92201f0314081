import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vineppo.machine.tensor_files import load_tensors, save_tensors
from vineppo.runs.checkpoint import CheckpointConfig, checkpoint_folders, load_checkpoint, save_checkpoint
from vineppo.types import UserError

KEEP_ALL = CheckpointConfig(keep_last=100)


def save(root: Path, iteration: int, config: CheckpointConfig = KEEP_ALL, size: int = 10) -> Path:
    def save_parts(folder: Path) -> None:
        save_tensors(torch.full((size,), float(iteration)), folder / "model.safetensors")
        save_tensors({"optimizer": {"moment": torch.arange(5) * iteration}}, folder / "trainer.pt")

    return save_checkpoint(
        root,
        save_parts=save_parts,
        progress={"iteration": iteration, "seed": 3},
        config=config,
    )


def iterations(root: Path) -> list[int]:
    return [int(folder.name[-6:]) for folder in checkpoint_folders(root)]


def test_the_newest_checkpoint_comes_back_whole(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    checkpoint = load_checkpoint(tmp_path, warn=pytest.fail)
    assert checkpoint is not None
    assert (checkpoint.iteration, checkpoint.progress) == (2, {"iteration": 2, "seed": 3})
    assert torch.equal(load_tensors(checkpoint.folder / "trainer.pt")["optimizer"]["moment"], torch.arange(5) * 2)


def test_no_checkpoint_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "nothing", warn=pytest.fail) is None


def test_the_last_ones_and_every_nth_are_kept(tmp_path):
    for iteration in range(1, 10):
        save(tmp_path, iteration, CheckpointConfig(keep_last=2, keep_every=4))
    assert iterations(tmp_path) == [4, 8, 9]
    assert not list(tmp_path.glob(".unfinished*"))


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt", "trainer.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, name, damage):
    save(tmp_path, 1)
    victim = save(tmp_path, 2) / name
    content = bytearray(victim.read_bytes())
    if damage == "remove":
        victim.unlink()
    else:
        content[len(content) // 2] ^= 1
        victim.write_bytes(content if damage == "flip" else content[:-1])
    warnings: list[str] = []
    checkpoint = load_checkpoint(tmp_path, warnings.append)
    assert checkpoint is not None
    assert checkpoint.iteration == 1
    assert len(warnings) == 1
    assert str(victim) in warnings[0]


def test_a_checkpoint_without_checksums_is_passed_over(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "checksums.json").write_text("{")
    warnings: list[str] = []
    assert load_checkpoint(tmp_path, warnings.append).iteration == 1  # type: ignore[union-attr]
    assert "checksums.json" in warnings[0]


def test_an_unfinished_folder_is_neither_loaded_nor_in_the_way(tmp_path):
    save(tmp_path, 1)
    unfinished = tmp_path / ".unfinished-iteration-000002"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_text("half")
    assert load_checkpoint(tmp_path, warn=pytest.fail).iteration == 1  # type: ignore[union-attr]
    save(tmp_path, 2)
    assert iterations(tmp_path) == [1, 2]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB, which only root can mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("cannot mount a small file system here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_previous_checkpoint_and_says_how_much_is_needed(small_disk):
    save(small_disk, 1)
    with pytest.raises(UserError, match=r"disk full .* needs about \d+ MiB, \d+ MiB are free.*iteration-000001"):
        save(small_disk, 2, size=1_000_000)
    assert load_checkpoint(small_disk, warn=pytest.fail).iteration == 1  # type: ignore[union-attr]
    assert not list(small_disk.glob(".unfinished*"))
    save(small_disk, 2)
    assert iterations(small_disk) == [1, 2]


def test_a_file_size_limit_is_a_full_disk_too(tmp_path):
    """Runs where no file system can be mounted: the kernel refuses to write past the limit."""
    script = f"""
import resource, torch
from pathlib import Path
from vineppo.machine.tensor_files import save_tensors
from vineppo.runs.checkpoint import CheckpointConfig, save_checkpoint
from vineppo.types import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
def save(iteration, size):
    def save_parts(folder):
        (folder / "model.safetensors").touch()
        save_tensors({{"x": torch.zeros(size)}}, folder / "trainer.pt")
    save_checkpoint(Path({str(tmp_path)!r}), save_parts=save_parts,
                    progress={{"iteration": iteration, "seed": 0}}, config=CheckpointConfig())
save(1, 10)
try:
    save(2, 1_000_000)
except UserError as error:
    print(error)
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "disk full" in output
    assert iterations(tmp_path) == [1]
