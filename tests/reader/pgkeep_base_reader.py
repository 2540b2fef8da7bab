#!/usr/bin/env python3
"""Lists and extracts the base backups in a pgkeep repository on a disk. Written from docs/FORMAT.md alone, as pgkeep_reader.py is,
whose helpers it uses: zstd, age for encrypted backups, and b3sum for hashes and fingerprints.

    pgkeep_base_reader.py DIRECTORY list
    pgkeep_base_reader.py DIRECTORY extract ID --into NEW_DIRECTORY [--identity KEYFILE] [--cluster NAME]

`extract` writes the data directory as `data`, each tablespace as `tablespaces/OID`, and `backup_label` into `data`. What else a server
needs to recover, its WAL and settings, docs/FORMAT.md tells under "Restoring by hand".
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from pgkeep_reader import AGE_MAGIC, FORMAT_KNOWN, Contents, Hashes, Repository, Wrong, inside, require, tool

ID = re.compile(r"b(\d{8}T\d{6}Z)-[0-9a-f]{6}")
FILE, DIRECTORY, LINK = range(3)
ZEROS, NEXT, ADDRESS = range(3)
DATA, OUTSIDE, TABLESPACES = range(3)
FOOTER_BYTES = 24


class Fields:
    """Bytes, read one field after another."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        require(self.at + count <= len(self.data), "something is cut off")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self):
        number = shift = 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                require(byte or shift == 7, "a number is longer than it need be")
                return number

    def u32(self):
        return int.from_bytes(self.take(4), "little")

    def left(self):
        return self.at < len(self.data)


def zstd(data):
    command = [tool("zstd"), "--decompress", "--stdout", "--quiet", "--memory=8MiB"]
    done = subprocess.run(command, input=data, capture_output=True)
    require(done.returncode == 0, f"zstd: {done.stderr.decode(errors='replace')}")
    return done.stdout


def decrypted(path, identity):
    """An object without age's layer."""
    data = path.read_bytes()
    if not data.startswith(AGE_MAGIC):
        return data
    require(identity, f"{path} is encrypted: give the key file with --identity")
    done = subprocess.run([tool("age"), "--decrypt", "--identity", str(identity), str(path)], capture_output=True)
    require(done.returncode == 0, f"{path} can't be opened: {done.stderr.decode(errors='replace')}")
    return done.stdout


class Pack:
    """A pack's blocks."""

    def __init__(self, path, identity, block_bytes):
        data = decrypted(path, identity)
        footer = Fields(data[-FOOTER_BYTES:])
        self.block_bytes, frames, blocks, index_bytes = (footer.u32() for _ in range(4))
        require(footer.take(8) == b"PGKPACK1", f"{path} doesn't end as a pack does")
        require(self.block_bytes == block_bytes, f"{path} has blocks of {self.block_bytes} bytes")
        index_at = len(data) - FOOTER_BYTES - index_bytes
        header = Fields(data[index_at - 8 : index_at])
        require(header.take(4) == b"\x50\x2a\x4d\x18", f"{path} has no skippable frame")
        require(header.u32() == index_bytes + FOOTER_BYTES, f"the skippable frame of {path} has another length")
        self.sizes, self.fingerprints, compressed = [], [], 0
        index = Fields(zstd(data[index_at : index_at + index_bytes]))
        for _ in range(frames):
            compressed += index.varint()
            in_frame, short = index.varint(), index.varint()
            sizes = [block_bytes] * in_frame
            for _ in range(short):
                slot, size = index.varint(), index.varint()
                require(0 < size < block_bytes, f"{path}: a short block of {size} bytes")
                sizes[slot] = size
            index.take(16)
            self.sizes += sizes
            self.fingerprints += [index.take(8) for _ in range(in_frame)]
        require(not index.left(), f"the index of {path} goes on behind its frames")
        require(compressed == index_at - 8 and len(self.sizes) == blocks, f"the index of {path} doesn't fit it")
        # All that isn't a block is skipped.
        self.contents = zstd(data)
        require(len(self.contents) == sum(self.sizes), f"{path} holds {len(self.contents)} bytes")
        self.starts = [0]
        for size in self.sizes:
            self.starts.append(self.starts[-1] + size)

    def blocks(self, first, count):
        require(first + count < len(self.starts), "a file lies in a block that no pack has")
        return self.contents[self.starts[first] : self.starts[first + count]]


def records(data, block_bytes):
    """(root, path, mode, contents) of each record; of a file (size, extents), an extent being (count, pack, block), pack None for zeros."""
    fields, pack, block = Fields(data), 0, 0
    while fields.left():
        kind, root = fields.varint(), fields.varint()
        path = fields.take(fields.varint())
        mode = fields.varint()
        contents = None
        if kind == LINK:
            contents = fields.take(fields.varint())
        elif kind == FILE:
            size, _ = fields.varint(), fields.varint()
            left, extents = -(-size // block_bytes), []
            while left:
                number = fields.varint()
                count, tag = number >> 2, number & 3
                require(0 < count <= left, "the extents of a file don't add up to its size")
                left -= count
                if tag == ZEROS:
                    extents.append((count, None, None))
                    continue
                if tag == ADDRESS:
                    difference = fields.varint()
                    pack += (difference >> 1) ^ -(difference & 1)
                    block = fields.varint()
                require(tag in (NEXT, ADDRESS), "an extent is of an unknown kind")
                extents.append((count, pack, block))
                block += count
            contents = (size, extents)
        else:
            require(kind == DIRECTORY, "a record is of an unknown kind")
        inside(os.fsdecode(path))
        yield kind, root, path, mode, contents


class Base:
    """One base backup."""

    def __init__(self, repository, name):
        self.repository, self.name = repository, name
        self.folder, self.identity = repository.cluster / "base" / name, repository.identity
        self.hashes = Hashes()

    def contents(self, name):
        contents = Contents(self.folder / inside(name), self.identity)
        data = contents.output.read()
        contents.close()
        return data

    def manifest(self):
        manifest = json.loads(self.contents("manifest"))
        require(manifest["format"] <= FORMAT_KNOWN, f"the backup's format is {manifest['format']}")
        require(manifest["id"] == self.name, f"the manifest belongs to {manifest['id']}")
        return manifest

    def object(self, reference):
        path = self.folder / inside(reference["name"])
        require(path.stat().st_size == reference["stored_bytes"], f"{path} has another size")
        self.hashes.expect(path, reference["hash"])
        data = self.contents(reference["name"])
        require(len(data) == reference["plain_bytes"], f"{path} holds {len(data)} bytes")
        return data

    def packs(self, manifest):
        """Where each pack lies, by its number."""
        fields = Fields(self.object(manifest["packs"]))
        owners = [fields.take(24).decode() for _ in range(fields.varint())]
        require(all(ID.fullmatch(owner) for owner in owners), "packs.table names what is no backup")
        paths = []
        for _ in range(fields.varint()):
            owner, number, stored = owners[fields.varint()], fields.varint(), fields.varint()
            header, _, _ = fields.varint(), fields.varint(), fields.varint()
            name = f"packs/{number:06}.zst{'.age' if header else ''}"
            path = self.repository.cluster / "base" / owner / name
            require(path.stat().st_size == stored, f"{path} has another size")
            with open(path, "rb") as file:
                require(file.read(header).endswith(b"\n") or not header, f"the header of {path} ends elsewhere")
            self.hashes.expect(path, fields.take(32).hex())
            paths.append(path)
        require(not fields.left(), "packs.table goes on behind its last pack")
        return paths

    def check_fingerprint(self, pack, key):
        """Of a pack's first block, by the stock program."""
        program = self.hashes.program
        if program and pack.sizes:
            block = Path(self.into / "block")
            block.write_bytes(pack.blocks(0, 1))
            command = [program, "--keyed", "--no-names", str(block)]
            found = subprocess.run(command, input=bytes.fromhex(key), check=True, capture_output=True).stdout.decode()
            require(bytes.fromhex(found.strip())[:8] == pack.fingerprints[0], "the fingerprint of a block is another")
            block.unlink()

    def extract(self, into):
        self.into = Path(into)
        self.into.mkdir()
        manifest, files = self.manifest(), 0
        block_bytes = manifest["block_bytes"]
        roots = {DATA: self.into / "data"}
        for number, space in enumerate(manifest.get("tablespaces", [])):
            roots[TABLESPACES + number] = self.into / "tablespaces" / str(space["oid"])
        for root in roots.values():
            root.mkdir(parents=True)
        paths, number, pack, plain = self.packs(manifest), None, None, 0
        for reference in manifest["files"]:
            for kind, root, path, mode, contents in records(self.object(reference), block_bytes):
                target = roots[root] / os.fsdecode(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                if kind == DIRECTORY:
                    target.mkdir(exist_ok=True)
                elif kind == LINK:
                    target.symlink_to(os.fsdecode(contents))
                else:
                    size, extents = contents
                    files, plain = files + 1, plain + size
                    with open(target, "xb") as file:
                        for count, place, block in extents:
                            if place is None:
                                file.seek(count * block_bytes, os.SEEK_CUR)
                                continue
                            if place != number:
                                number, pack = place, Pack(paths[place], self.identity, block_bytes)
                                self.check_fingerprint(pack, manifest["fingerprint_key"])
                            file.write(pack.blocks(block, count))
                        # Zeros at the end, and the size of a last block of zeros.
                        require(file.tell() == size or extents and extents[-1][1] is None, f"{target} has another size")
                        file.truncate(size)
                if kind != LINK:
                    target.chmod(mode)
        require(files == manifest["totals"]["files"], f"{files} files, not {manifest['totals']['files']}")
        require(plain == manifest["totals"]["plain_bytes"], f"{plain} bytes, not {manifest['totals']['plain_bytes']}")
        (roots[DATA] / "backup_label").write_text(manifest["backup_label"])
        print(json.dumps({"id": self.name, "files": files, "bytes": plain, "hashes_compared": self.hashes.compare()}))


def backups(repository):
    for folder in sorted((repository.cluster / "base").iterdir()):
        if ID.fullmatch(folder.name):
            yield folder.name, repository.state(folder)


def find(repository, text):
    complete = [name for name, state in backups(repository) if state == "complete"]
    fitting = complete[-1:] if text == "latest" else [name for name in complete if name.startswith(text)]
    require(len(fitting) == 1, f"'{text}' names {len(fitting)} complete base backups")
    return Base(repository, fitting[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repository")
    parser.add_argument("command", choices=["list", "extract"])
    parser.add_argument("backup", nargs="?", default="latest")
    parser.add_argument("--into")
    parser.add_argument("--identity")
    parser.add_argument("--cluster")
    options = parser.parse_args()
    try:
        repository = Repository(options.repository, options.cluster, options.identity, "base")
        if options.command == "list":
            print(json.dumps([{"id": name, "state": state} for name, state in backups(repository)]))
        else:
            require(options.into, "say where to with --into")
            find(repository, options.backup).extract(options.into)
    except (Wrong, OSError, ValueError, KeyError, IndexError) as error:
        print(f"pgkeep_base_reader: {error if not isinstance(error, KeyError) else f'a field is missing: {error}'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
