use std::collections::BTreeMap;

use pgkeep_base::{BackupId, BackupKind};

use super::PACK_TABLE_BYTES_MAX;
use crate::layout;
use crate::pack::{PACK_BLOCKS_MAX, PACK_STORED_BYTES_MAX};
use crate::varint::{Broken, Fields, put};

/// The length of a backup's id.
const ID_BYTES: usize = 24;
const HASH_BYTES: usize = 32;

/// A pack that a backup needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackInfo {
    /// In whose folder it lies.
    pub owner: BackupId,
    /// Its number there, from 1.
    pub number: u32,
    /// Its size as stored, in bytes.
    pub stored_bytes: u64,
    /// How many of these are age's header; 0: it isn't encrypted.
    pub header_bytes: u32,
    /// How many bytes, inside age, its compressed index has.
    pub index_bytes: u32,
    /// Its blocks.
    pub blocks: u32,
    /// BLAKE3 of the stored bytes.
    pub hash: blake3::Hash,
}

impl PackInfo {
    /// Its name in its owner's folder.
    pub fn name(&self) -> String {
        layout::pack_object(self.number, layout::sealed_suffix(self.header_bytes > 0))
    }

    /// Its name in the folder of a backup that needs it: a [`layout::reference`] where it lies in another one's.
    pub fn name_in(&self, id: &BackupId) -> String {
        match self.owner == *id {
            true => self.name(),
            false => layout::reference_to(&self.owner, &self.name()),
        }
    }

    /// Its key in the repository.
    pub fn key(&self, cluster: &str) -> String {
        layout::backup_object(cluster, &self.owner, &self.name())
    }

    fn check(&self) -> Result<(), Broken> {
        let sizes = self.stored_bytes <= PACK_STORED_BYTES_MAX && self.blocks <= PACK_BLOCKS_MAX;
        match sizes && self.number > 0 && self.owner.kind() == BackupKind::Base {
            true => Ok(()),
            false => Err(Broken("a pack in it can't be")),
        }
    }
}

/// The packs that a backup needs; extents name them by their place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackTable {
    /// In that order.
    pub packs: Vec<PackInfo>,
}

impl PackTable {
    /// The object's contents.
    ///
    /// # Errors
    /// It is one that no reader takes.
    pub fn encode(&self) -> Result<Vec<u8>, Broken> {
        let mut places: BTreeMap<&BackupId, u64> = BTreeMap::new();
        let mut owners: Vec<&BackupId> = Vec::new();
        for pack in &self.packs {
            pack.check()?;
            places.entry(&pack.owner).or_insert_with(|| {
                owners.push(&pack.owner);
                owners.len() as u64 - 1
            });
        }
        let mut output = Vec::new();
        put(&mut output, owners.len() as u64);
        owners
            .iter()
            .for_each(|owner| output.extend_from_slice(owner.to_string().as_bytes()));
        put(&mut output, self.packs.len() as u64);
        for pack in &self.packs {
            put(&mut output, places.get(&pack.owner).copied().unwrap_or(0));
            put(&mut output, u64::from(pack.number));
            put(&mut output, pack.stored_bytes);
            put(&mut output, u64::from(pack.header_bytes));
            put(&mut output, u64::from(pack.index_bytes));
            put(&mut output, u64::from(pack.blocks));
            output.extend_from_slice(pack.hash.as_bytes());
        }
        match output.len() <= PACK_TABLE_BYTES_MAX {
            true => Ok(output),
            false => Err(Broken("it is longer than anybody reads")),
        }
    }

    /// Reads the object's contents.
    ///
    /// # Errors
    /// They are none of it.
    pub fn parse(contents: &[u8]) -> Result<Self, Broken> {
        let mut fields = Fields(contents);
        let owners = fields.count(ID_BYTES)?;
        let owners = (0..owners).map(|_| {
            let id = std::str::from_utf8(fields.take(ID_BYTES)?).unwrap_or_default();
            id.parse().map_err(|_| Broken("a backup's name in it is none"))
        });
        let owners: Vec<BackupId> = owners.collect::<Result<_, Broken>>()?;
        let count = fields.count(6 + HASH_BYTES)?;
        let packs = (0..count).map(|_| {
            let owner = usize::try_from(fields.varint()?).ok();
            let owner = owner.and_then(|place| owners.get(place));
            let pack = PackInfo {
                owner: owner.cloned().ok_or(Broken("a pack in it is of no backup"))?,
                number: fields.varint32()?,
                stored_bytes: fields.varint()?,
                header_bytes: fields.varint32()?,
                index_bytes: fields.varint32()?,
                blocks: fields.varint32()?,
                hash: blake3::Hash::from_bytes(fields.array()?),
            };
            pack.check()?;
            Ok(pack)
        });
        let packs = packs.collect::<Result<_, Broken>>()?;
        match fields.is_empty() {
            true => Ok(Self { packs }),
            false => Err(Broken("it goes on behind its last pack")),
        }
    }
}
