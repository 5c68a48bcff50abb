"""Tar archives: as `tarfile` writes them in each of its formats, and such as nobody should write."""

import io
import itertools
import tarfile

import pytest

from evener.data import archive

FILES = {"readme": b"hello", f"{'deep/' * 30}data_1": b"a" * 700, "batches/data_2": b"", "data_3": b"b" * 512}


def packed(format_, files=FILES):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=format_) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"data_{kind.decode()}")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    return made.getvalue()


def limit_of(name):
    return 1000 if "data" in name else 0


def read(content):
    return list(archive.members(io.BytesIO(content), limit_of))


def header(name="data_1", kind=tarfile.REGTYPE, size=0):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


class Endless(io.RawIOBase):
    """A header, then zeros without end; counts what was taken of it."""

    def __init__(self, start):
        self._start, self.taken = start, 0

    def read(self, count=-1):
        assert count >= 0, "all of what has no end"
        piece, self._start = self._start[:count], self._start[count:]
        self.taken += count
        return piece or bytes(count)


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_wanted_files_come_out_under_their_names_and_links_and_devices_do_not(format_):
    assert read(packed(format_)) == [(name, content) for name, content in FILES.items() if "data" in name]


def test_an_archive_may_end_between_two_members():
    assert read(header(size=3) + b"abc".ljust(512, b"\0")) == [("data_1", b"abc")]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE])
def test_a_name_of_seven_gigabytes_is_not_read(kind):
    stream = Endless(header(kind=kind, size=7 << 30))

    with pytest.raises(archive.DamagedArchive, match=f"a name or attributes of {7 << 30} bytes"):
        list(archive.members(stream, limit_of))
    assert stream.taken <= 1024


def test_a_wanted_file_above_its_limit_is_not_read():
    stream = Endless(header(size=1001))

    with pytest.raises(archive.DamagedArchive, match="data_1 is too large: 1001 bytes, more than 1000"):
        list(archive.members(stream, limit_of))
    assert stream.taken <= 1024


def test_what_is_not_wanted_is_passed_over_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(archive, "TOTAL", 1 << 20)
    stream = Endless(header("readme", size=1 << 40))

    with pytest.raises(archive.DamagedArchive, match="it unpacks to more than 1048576 bytes"):
        list(archive.members(stream, limit_of))
    assert stream.taken <= 1 << 20


def test_more_members_than_a_data_set_has_are_refused():
    many = itertools.repeat(header("readme"), archive.MEMBERS + 1)

    with pytest.raises(archive.DamagedArchive, match="more than 10000 members"):
        read(b"".join(many))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no archive " * 50, "a header with a number that is none"),
        (header()[:-1] + b"x", "does not agree with its checksum"),
        (header(size=600), "it is cut short"),
        (header(size=600) + bytes(600), "it is cut short"),
        (header()[:100], "it is cut short"),
    ],
    ids=["foreign", "changed", "no content", "no padding", "half a header"],
)
def test_damage_is_told(content, reason):
    with pytest.raises(archive.DamagedArchive, match=reason):
        read(content)
