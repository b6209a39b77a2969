# SPDX-License-Identifier: GPL-2.0-or-later
import os
import tomllib
from pathlib import Path

import pytest

import dom0_agent.config
from dom0_agent.config import ConfigError, dataset, load

GOOD = """
state_dir = "state"
[[pool]]
name = "p"
driver = "file"
path = "pool"
[[volume]]
qube = "work"
volume = "private"
pool = "p"
vid = "work/private.img"
[[allow_restore]]
from = "work/private"
to = "test/private"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load(write(tmp_path, GOOD))
    assert config.state_dir == tmp_path / "state"
    assert config.volumes[0].pool.path == tmp_path / "pool"
    assert config.allow_restore == {("work/private", "test/private")}


LVM = """
state_dir = "state"
[[pool]]
name = "p"
driver = "lvm_thin"
volume_group = "qubes_dom0"
thin_pool = "vm-pool"
[[volume]]
qube = "work"
volume = "private"
pool = "p"
vid = "qubes_dom0/vm-work-private"
"""


def test_a_thin_pool(tmp_path: Path) -> None:
    (volume,) = load(write(tmp_path, LVM)).volumes
    assert (volume.pool.volume_group, volume.pool.thin_pool, volume.vid) == (
        "qubes_dom0",
        "vm-pool",
        "vm-work-private",
    )
    assert (volume.pool.data_limit, volume.pool.metadata_limit) == (95, 90)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("qubes_dom0/vm-work", "other/vm-work", "qubes_dom0"),
        ("qubes_dom0/vm-work-private", "--config", "logical volume"),
        ('thin_pool = "vm-pool"', 'thin_pool = "vm pool"', "thin pool"),
        ('thin_pool = "vm-pool"', 'thin_pool = "vm-pool"\npath = "x"', "'path'"),
        ('thin_pool = "vm-pool"', 'thin_pool = "vm-pool"\ndata_limit = 0', "data_limit"),
    ],
)
def test_a_thin_pool_that_cannot_be(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in LVM
    with pytest.raises(ConfigError, match=said):
        load(write(tmp_path, LVM.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('state_dir = "state"', "", "state_dir"),
        ('driver = "file"', 'driver = "zfs"', "zfs"),
        ('pool = "p"', 'pool = "q"', "no pool 'q'"),
        ("work/private.img", "../../etc/shadow", "inside the pool"),
        ("work/private.img", "/etc/shadow", "inside the pool"),
        ('qube = "work"', 'qube = "../work"', "qube"),
        ('qube = "work"', "qube = 1", "text"),
        ('state_dir = "state"', 'state_dir = "state"\nthreads = 0', "threads"),
        ('state_dir = "state"', 'state_dir = "state"\nchunk_padding = -1', "chunk_padding"),
        ('state_dir = "state"', 'state_dir = "state"\ntypo = 1', "typo"),
        ('from = "work/private"', 'from = "work"', "QUBE/VOLUME"),
        ("state_dir =", "state_dir", "agent.toml"),
        ('"state"', '"~/state"', "written out"),
        ('"state"', '""', "written out"),
        ('"pool"', '"~/pool"', "written out"),
        ('"pool"', '"a\\u0000b"', "written out"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(write(tmp_path, GOOD.replace(old, new, 1)))


def test_a_volume_is_listed_once(tmp_path: Path) -> None:
    twice = GOOD + '[[volume]]\nqube = "work"\nvolume = "private"\npool = "p"\nvid = "other.img"\n'
    with pytest.raises(ConfigError, match="twice"):
        load(write(tmp_path, twice))


def test_a_pool_is_listed_once(tmp_path: Path) -> None:
    twice = GOOD + '[[pool]]\nname = "p"\ndriver = "file"\npath = "other"\n'
    with pytest.raises(ConfigError, match="pool p is listed twice"):
        load(write(tmp_path, twice))


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/proc/self", "fifo", "large"])
def test_what_is_no_file_or_has_no_end_is_refused(tmp_path: Path, path: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError):
        load(tmp_path / path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "agent.toml")


ZFS = """
state_dir = "state"
[[pool]]
name = "p"
driver = "zfs"
dataset = "tank/vms"
data_limit = 80
[[volume]]
qube = "work"
volume = "private"
pool = "p"
vid = "work/private"
"""


def test_a_zfs_pool_is_a_dataset(tmp_path: Path) -> None:
    (volume,) = load(write(tmp_path, ZFS)).volumes
    assert (volume.pool.path, volume.pool.data_limit) == (Path("/dev/zvol/tank/vms"), 80)
    assert dataset(volume.pool) == "tank/vms" and volume.vid == "work/private"


@pytest.mark.parametrize(
    "name", ["", "tank/", "/tank", "tank//x", "tank/..", "a@b", "-a b", "a\\nb"]
)
def test_what_is_no_name_of_zfs_is_refused(tmp_path: Path, name: str) -> None:
    for old in ("tank/vms", '"work/private"'):
        with pytest.raises(ConfigError, match="ZFS"):
            load(write(tmp_path, ZFS.replace(old.strip('"'), name)))


def test_a_file_that_is_as_it_was_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, GOOD)
    assert load(path) is not load(path), "it is of just now: it could change and look the same"
    monkeypatch.setattr(dom0_agent.config, "_TICK", -(10**12))
    before = load(path)
    with monkeypatch.context() as patch:
        patch.setattr(tomllib, "load", None)
        assert load(path) is before
    changed = write(tmp_path, GOOD.replace("work", "play"))
    assert load(changed).volumes[0].qube == "play"
    (tmp_path / "other").write_text(GOOD)
    (tmp_path / "other").replace(path)
    assert load(path).volumes[0].qube == "work"
    write(tmp_path, "state_dir = 5")
    with pytest.raises(ConfigError):
        load(path)
    path.unlink()
    with pytest.raises(ConfigError):
        load(path)


def test_changes_of_one_moment_are_all_seen(tmp_path: Path) -> None:
    for number in range(200):
        path = write(tmp_path, GOOD.replace("work/private.img", f"{number:03}.img"))
        assert load(path).volumes[0].vid == f"{number:03}.img"


ODD = ("1", "-1", "1.5", "true", '"x"', "[1]", '["x"]', "[[1]]", "{a = 1}", "[{}]", "1979-05-27")


@pytest.mark.parametrize("key", ["pool", "volume", "allow_restore", "threads", "qubes", "catalog"])
def test_a_value_of_another_type_is_named(tmp_path: Path, key: str) -> None:
    for value in ODD:
        try:
            load(write(tmp_path, f'state_dir = "state"\n{key} = {value}\n'))
        except ConfigError as error:
            text = str(error).partition("agent.toml: ")[2]
            assert key in text and "\n" not in text and "object" not in text, (value, text)
            assert "indices" not in text, (value, text)
        else:
            assert (key, value) in (("threads", "1"), ("qubes", "{a = 1}")), value


@pytest.mark.parametrize("key", ["from", "to"])
def test_what_may_be_restored_must_be_volumes(tmp_path: Path, key: str) -> None:
    for value in ("1", '""', '"work"', '"a/b/c"', "[]"):
        both = {"from": '"work/private"', "to": '"work/private"'} | {key: value}
        lines = "\n".join(f"{one} = {text}" for one, text in both.items())
        with pytest.raises(ConfigError, match=key):
            load(write(tmp_path, f'state_dir = "state"\n[[allow_restore]]\n{lines}\n'))
