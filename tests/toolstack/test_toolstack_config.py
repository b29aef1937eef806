"""Configuration files: what is understood, and the sentence for each thing that is not."""

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolstack.errors import ConfigError, UsageError
from toolstack.xl_config import DomainConfig, check_together, load_config, parse_config, parse_cpus
from toolstack.xl_syntax import parse

BASE = Path("/etc/xen")


def config(text: str, source: str = "g.cfg") -> DomainConfig:
    return parse_config(text, source, BASE)


def test_a_whole_configuration() -> None:
    text = """
# a whole guest
name = "guest1" ; memory = 0x10
vcpus = '2'
kernel = 'guest.py:Guest1'
root = "/dev/xvda1"
extra = "ip=10.0.0.1/24 \\"quoted\\" \\x41\\101"
disk = [
    "format=raw,vdev=xvda,access=rw,target=guest1.img",   # the disk

    'file:/srv/data.img,xvdb,r',
]
vif = [ 'mac=00:16:3E:00:00:01,bridge=br1', '' ]
disk += ["/x,,xvdc"]
on_crash = "rename_restart"
cpus = "0-3,^1"
"""
    got = config(text)
    assert (got.name, got.memory, got.maxmem, got.vcpus, got.maxvcpus) == ("guest1", 16, 16, 2, 2)
    assert (got.kernel, got.kernel_class) == (BASE / "guest.py", "Guest1")
    assert got.cmdline == 'root=/dev/xvda1 ip=10.0.0.1/24 "quoted" AA'
    assert [(d.target, d.vdev, d.writable) for d in got.disks] == [
        ("/etc/xen/guest1.img", "xvda", True),
        ("/srv/data.img", "xvdb", False),
        ("/x", "xvdc", True),
    ]
    assert [(v.mac, v.bridge) for v in got.vifs] == [("00:16:3e:00:00:01", "br1"), (None, "xenbr0")]
    assert (got.on_poweroff, got.on_reboot, got.on_crash) == ("destroy", "restart", "rename-restart")
    assert got.cpus == (0, 2, 3)


NAMED = 'name="g"\nkernel="k.py"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 'g\nkernel='k.py'", "g.cfg:1: this string has no closing quote on its line"),
        ("name = 'g'\nmemory = \n", "g.cfg:2: expected a value, got the end of the line"),
        ("name = 'g'\nmemory 3\n", "g.cfg:2: expected '=' after 'memory', got '3'"),
        ("= 3", "g.cfg:1: a setting starts with its name, not with '='"),
        ("name = 'g' memory = 3", "g.cfg:1: expected the end of the line after the value of 'name', got 'memory'"),
        ("disk = [ 'a'\n, 'b'\n", "g.cfg:1: this list has no closing ']'"),
        ("disk = [ 'a' 'b' ]", "g.cfg:1: expected ',' or ']' in the list that starts in line 1, got \"'b'\""),
        ("vcpus = __import__('os')", "g.cfg:1: unexpected character '('"),
        ("vcpus = two", "g.cfg:1: a value is a string, a number or a list; put 'two' in quotes"),
        ("vcpus = 2*3", "g.cfg:1: unexpected character '*'"),
        ("vcpus = " + "[" * 50, "g.cfg:1: lists are nested too deeply"),
        ("name = '\\q'", "g.cfg:1: unknown escape '\\q' in a string"),
        (NAMED + "extra = 'a'\nextra += [1]", "g.cfg:4: '+=' needs two lists or two strings, and 'extra' is not that"),
        ("kernel = 'k.py'", 'g.cfg:1: the domain has no name (name = "…")'),
        ("name = 'g'", 'g.cfg:1: the domain has no kernel (kernel = "guest.py")'),
        (NAMED + "memroy = 4", "g.cfg:3: unknown setting 'memroy'; did you mean 'memory'?"),
        (NAMED + "zzz = 4", "g.cfg:3: unknown setting 'zzz'"),
        (NAMED + "\nvnc = 1", "g.cfg:4: the setting 'vnc' of xl is not supported here"),
        (NAMED + "type = 'hvm'", "g.cfg:3: only domains of type 'pv' are supported, not 'hvm'"),
        (NAMED + "memory = 'lots'", "g.cfg:3: 'memory' is a whole number"),
        (NAMED + "memory = 0", "g.cfg:3: 'memory' is between 1 and 1048576, not 0"),
        (NAMED + "vcpus = 4\nmaxvcpus=3", "g.cfg:4: 'maxvcpus' is between 4 and 32, not 3"),
        (NAMED + "name = 7", "g.cfg:3: 'name' is a string"),
        (NAMED + "name = '7'", "g.cfg:3: the domain name '7' looks like a domain number"),
        (NAMED + "on_crash = 'coredump-restart'", "the action 'coredump-restart' is not supported; there are destroy,"),
        (NAMED + "on_crash = 'destory'", "g.cfg:3: unknown action 'destory'; did you mean 'destroy'?"),
        (NAMED + "disk = ['/a,raw,xvda',\n\n '/b,raw']", "g.cfg:5: the disk has no vdev"),
        (NAMED + "disk = ['/a,raw,xvda',\n '/b,raw,xvda']", "g.cfg:4: two disks are 'xvda'"),
        (NAMED + "vif = ['devid=0',\n 'devid=0']", "g.cfg:4: two interfaces have the number 0"),
        (NAMED + "vif = ['devid=1',\n '']", "g.cfg:4: two interfaces have the number 1"),
        (NAMED + "disk = '/a,raw,xvda'", "g.cfg:3: 'disk' is a list of strings"),
        (NAMED + "vif = [ 'bridge=a',\n 7]", "g.cfg:4: 'vif' is a list of strings"),
        (NAMED + "vif = [ 'brigde=a' ]", "g.cfg:3: unknown vif parameter 'brigde'; did you mean 'bridge'?"),
        (NAMED + "uuid = 'x'", "g.cfg:3: 'x' is no UUID"),
        (NAMED + "cpus = '0-x'", "g.cfg:3: '0-x' is no range of CPUs"),
        (NAMED + "kernel = 'k.py:not a name'", "is no class name"),
        (NAMED + "extra = 'a\\0b'", "g.cfg:3: 'extra' holds a NUL character"),
    ],
)
def test_each_mistake_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_config(tmp_path / "none.cfg")
    with pytest.raises(UsageError, match="is a directory"):
        load_config(tmp_path)
    (tmp_path / "b.cfg").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not text"):
        load_config(tmp_path / "b.cfg")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "g.cfg").write_text(NAMED + "disk = ['d.img,,xvda']")
    got = load_config(tmp_path / "g.cfg")
    assert got.kernel == tmp_path / "k.py"
    assert got.disks[0].target == str(tmp_path / "d.img")


def test_configurations_together() -> None:
    one = config(NAMED + "vif=['mac=00:16:3e:00:00:01']", "1.cfg")
    check_together([one, config("name='h'\nkernel='k.py'\nvif=['']", "2.cfg")])
    with pytest.raises(ConfigError, match=r"2\.cfg:1: the domain name 'g' is already taken by 1\.cfg"):
        check_together([one, config(NAMED, "2.cfg")])
    with pytest.raises(ConfigError, match=r"2\.cfg:4: the MAC address 00:16:3e:00:00:01 is already taken by 'g'"):
        check_together([one, config("name='h'\nkernel='k'\nvif=['',\n'mac=0:16:3e:0:0:1']", "2.cfg")])
    with pytest.raises(ConfigError, match="already taken by the host"):
        check_together([config("name='Domain-0'\nkernel='k'")])


def test_cpus() -> None:
    assert parse_cpus(["0-3", "^1", " 7"]) == (0, 2, 3, 7)
    assert parse_cpus(["all"]) is None


STRINGS = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\n"), max_size=20)
VALUES = st.recursive(st.integers(0, 1 << 40) | STRINGS, lambda inner: st.lists(inner, max_size=4), max_leaves=8)
NAMES = st.text(string.ascii_letters, min_size=1, max_size=8)


def quoted(text: str, quote: str) -> str:
    return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote


def written(value: object, quote: str, gap: str) -> str:
    if isinstance(value, str):
        return quoted(value, quote)
    if isinstance(value, list):
        return "[" + gap + ("," + gap).join(written(item, quote, gap) for item in value) + gap + "]"
    return str(value)


@given(
    st.dictionaries(NAMES, VALUES, max_size=5),
    st.sampled_from("'\""),
    st.sampled_from(["", " ", "\n", " # x = [\n"]),
    st.sampled_from(["\n", ";", " # end\n", " ; "]),
)
def test_what_is_written_is_read_back(values: dict[str, object], quote: str, gap: str, end: str) -> None:
    text = "".join(f"{name} = {written(value, quote, gap)}{end}" for name, value in values.items())
    got = parse(text, "f")
    assert {name: setting.value for name, setting in got.items()} == values


@given(st.text(max_size=60) | st.text("[]=,;'\"\\\n ab01#+", max_size=60))
def test_any_text_is_settings_or_one_sentence(text: str) -> None:
    error = mistake_in(text)
    assert error is None or str(error).startswith(f"g.cfg:{error.line}: ")
    assert error is None or 1 <= error.line <= text.count("\n") + 1


def mistake_in(text: str) -> ConfigError | None:
    try:
        config(text)
    except ConfigError as error:
        return error
    return None
