//! `backup_manifest`: what PostgreSQL's own programs know a base backup by (documentation, chapter "Backup Manifest Format";
//! `backup/backup_manifest.c`).

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use pgkeep_pgformat::{Lsn, Timeline};
use ring::digest::{Context as Digest, SHA256};

use crate::error::{Context, PhysicalError};
use crate::restore::Place;

/// Its name, in the data directory.
pub const NAME: &str = "backup_manifest";
/// From this `server_version_num` on it has the system identifier, which makes it version 2.
const WITH_SYSTEM_IDENTIFIER: u32 = 170_000;
/// Files are read in pieces of so many bytes.
const READ_BYTES: usize = 256 << 10;

/// Writes it; its own checksum is the last line.
pub struct ManifestWriter {
    path: PathBuf,
    output: BufWriter<File>,
    digest: Digest,
    is_first: bool,
}

impl ManifestWriter {
    /// Begins it in the data directory.
    pub fn begin(
        place: &Place,
        server_version_num: u32,
        system_identifier: u64,
    ) -> Result<Self, PhysicalError> {
        let path = place.data().join(NAME);
        let mut manifest = Self {
            output: BufWriter::new(place.file(&path, 0o600, 0)?),
            path,
            digest: Digest::new(&SHA256),
            is_first: true,
        };
        let head = match server_version_num >= WITH_SYSTEM_IDENTIFIER {
            true => format!(
                "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {system_identifier},\n"
            ),
            false => "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n".to_owned(),
        };
        manifest.write(&head)?;
        manifest.write("\"Files\": [")?;
        Ok(manifest)
    }

    /// Adds a file.
    pub fn add(&mut self, entry: &Entry) -> Result<(), PhysicalError> {
        let separator = if self.is_first { "\n" } else { ",\n" };
        self.is_first = false;
        let line = format!("{separator}{}", entry.line());
        self.write(&line)
    }

    /// Ends it with the WAL that the backup needs.
    pub fn end(mut self, timeline: Timeline, (start, stop): (Lsn, Lsn)) -> Result<(), PhysicalError> {
        let ranges = format!(
            "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": {}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{stop}\" }}\n],\n",
            timeline.as_u32()
        );
        self.write(&ranges)?;
        // Of all up to here, the end of the last line included.
        let checksum = hexadecimal(self.digest.clone().finish().as_ref());
        self.write(&format!("\"Manifest-Checksum\": \"{checksum}\"}}\n"))?;
        let writing = || format!("writing {}", self.path.display());
        let file = self.output.into_inner().map_err(|error| error.into_error());
        file.and_then(|file| file.sync_all()).context(writing)
    }

    fn write(&mut self, text: &str) -> Result<(), PhysicalError> {
        self.digest.update(text.as_bytes());
        let written = self.output.write_all(text.as_bytes());
        written.context(|| format!("writing {}", self.path.display()))
    }
}

/// One of its files.
pub struct Entry {
    /// Below the data directory.
    pub path: Vec<u8>,
    /// In bytes.
    pub size: u64,
    /// In seconds since 1970.
    pub modified_at: u64,
    /// SHA-256 of its contents.
    pub sha256: [u8; 32],
}

impl Entry {
    /// Of a file that lies at `place`; all of it is read.
    pub fn read(path: Vec<u8>, modified_at: u64, place: &Path) -> Result<Self, PhysicalError> {
        let reading = || format!("reading {}", place.display());
        let mut file = File::open(place).context(reading)?;
        let mut digest = Digest::new(&SHA256);
        let mut buffer = vec![0; READ_BYTES];
        let mut size = 0;
        loop {
            let length = file.read(&mut buffer).context(reading)?;
            if length == 0 {
                break;
            }
            digest.update(buffer.get(..length).unwrap_or_default());
            size += length as u64;
        }
        let sha256 = digest.finish().as_ref().try_into();
        Ok(Self {
            path,
            size,
            modified_at,
            sha256: sha256.map_err(PhysicalError::internal)?,
        })
    }

    fn line(&self) -> String {
        let path = match std::str::from_utf8(&self.path) {
            Ok(path) => format!("\"Path\": {}", serde_json::Value::from(path)),
            Err(_) => format!("\"Encoded-Path\": \"{}\"", hexadecimal(&self.path)),
        };
        let modified_at = i64::try_from(self.modified_at).ok();
        let modified_at = modified_at.and_then(|seconds| Timestamp::from_second(seconds).ok());
        format!(
            "{{ {path}, \"Size\": {}, \"Last-Modified\": \"{}\", \"Checksum-Algorithm\": \"SHA256\", \"Checksum\": \"{}\" }}",
            self.size,
            modified_at.unwrap_or_default().strftime("%Y-%m-%d %H:%M:%S GMT"),
            hexadecimal(&self.sha256)
        )
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_written_as_they_can_be() {
        let mut entry = Entry {
            path: "base/1/a \"b\"\n\\ü".as_bytes().to_vec(),
            size: 8192,
            modified_at: 1_700_000_000,
            sha256: [0xab; 32],
        };
        let line = entry.line();
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(parsed["Path"], "base/1/a \"b\"\n\\ü");
        assert_eq!(parsed["Last-Modified"], "2023-11-14 22:13:20 GMT");
        assert_eq!(parsed["Checksum"], "ab".repeat(32));
        assert!(!line.contains('\n'), "{line}");
        entry.path = b"base/\xff".to_vec();
        let parsed: serde_json::Value = serde_json::from_str(&entry.line()).unwrap();
        assert_eq!(parsed["Encoded-Path"], "626173652fff");
    }
}
