//! Ranges of host ids for VMs, so that no two VMs of this host share a user.
//!
//! Sidecars know nothing of one another. What keeps them apart is the kernel: the ids above [`FIRST_ID`] are cut
//! into blocks of 64 ranges, and a sidecar that uses one holds an exclusive `flock` on the file of
//! that block. The lock goes with the process, however it ends. The files stay: removing one while somebody else has
//! it open would give the block away twice.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use agentos_guest_protocol::launcher::{IdMode, IdRange};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::sync::lock;

/// Where root's sidecars of this host meet, whatever runtime directory each of them uses: the ids are the host's.
pub const HOST_DIRECTORY: &str = "/run/agentos/ids";

/// Above what distributions give to people and to /etc/subuid.
pub const FIRST_ID: u32 = 0x4000_0000;

/// A VM's ids 0 to 65,535.
pub const IDS_PER_RANGE: u32 = 65_536;

/// One lock per 64 VMs.
const RANGES_PER_BLOCK: u32 = 64;
const IDS_PER_BLOCK: u32 = IDS_PER_RANGE * RANGES_PER_BLOCK;

/// Up to 0xC000_0000: the kernel's ids end at 2^32 - 2, and tools that think of ids as signed get no more confused
/// than they must.
const BLOCKS: u32 = 512;

const _: () = assert!(FIRST_ID as u64 + BLOCKS as u64 * (IDS_PER_BLOCK as u64) < (u32::MAX as u64));
const _: () = assert!(RANGES_PER_BLOCK == u64::BITS, "a block's ranges are the bits of a u64");

/// The ranges one sidecar can give out.
#[derive(Debug, Clone)]
pub struct IdPool {
    shared: Arc<Shared>,
}

/// One VM's ids, free again when dropped.
#[derive(Debug)]
pub struct IdLease {
    range: IdRange,
    /// Where to give it back: nothing to give back for the single id.
    home: Option<(Arc<Shared>, u32, u32)>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    mode: IdMode,
    /// Held for a few bit operations, or for opening and locking the file of a new block.
    blocks: Mutex<Vec<Block>>,
}

/// A block this process holds the lock of.
#[derive(Debug)]
struct Block {
    number: u32,
    /// Bit per range in use.
    used: u64,
    _lock: File,
}

impl IdPool {
    /// Lock files live in `directory`, which is made where it is missing.
    pub fn open(directory: &Path, mode: IdMode) -> io::Result<Self> {
        if mode == IdMode::Range {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let shared = Shared { directory: directory.to_owned(), mode, blocks: Mutex::new(Vec::new()) };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub fn lease(&self) -> io::Result<IdLease> {
        if self.shared.mode == IdMode::Single {
            return Ok(IdLease { range: IdRange::Single, home: None });
        }
        let mut blocks = lock(&self.shared.blocks);
        let index = match blocks.iter().position(|block| block.used != u64::MAX) {
            Some(index) => index,
            None => {
                let block = self.shared.lock_block(&blocks)?;
                blocks.push(block);
                blocks.len() - 1
            }
        };
        let block = blocks.get_mut(index).ok_or(io::ErrorKind::NotFound)?;
        let slot = block.used.trailing_ones();
        block.used |= 1 << slot;
        let base = FIRST_ID + block.number * IDS_PER_BLOCK + slot * IDS_PER_RANGE;
        let home = Some((Arc::clone(&self.shared), block.number, slot));
        Ok(IdLease { range: IdRange::Range { base }, home })
    }
}

impl Shared {
    fn lock_block(&self, held: &[Block]) -> io::Result<Block> {
        for number in (0..BLOCKS).filter(|number| held.iter().all(|block| block.number != *number)) {
            let path = self.directory.join(format!("{number}.lock"));
            let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Block { number, used: 0, _lock: file }),
                Err(Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(Errno::USERS.into())
    }
}

impl IdLease {
    pub fn range(&self) -> IdRange {
        self.range
    }
}

impl Drop for IdLease {
    fn drop(&mut self) {
        let Some((shared, number, slot)) = self.home.take() else { return };
        let mut blocks = lock(&shared.blocks);
        if let Some(block) = blocks.iter_mut().find(|block| block.number == number) {
            block.used &= !(1 << slot);
        }
        // The first block is kept for the next VM; others go back to the host once they are empty.
        let first = blocks.first().map(|block| block.number);
        blocks.retain(|block| block.used != 0 || Some(block.number) == first);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn base(lease: &IdLease) -> u32 {
        match lease.range() {
            IdRange::Range { base } => base,
            IdRange::Single => panic!("a range was asked for"),
        }
    }

    #[test]
    fn ranges_never_overlap_and_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let pool = IdPool::open(directory.path(), IdMode::Range).unwrap();
        let leases: Vec<_> = (0..200).map(|_| pool.lease().unwrap()).collect();
        let bases: BTreeSet<_> = leases.iter().map(base).collect();
        assert_eq!(bases.len(), 200);
        assert!(bases.iter().all(|base| base % IDS_PER_RANGE == 0 && *base >= FIRST_ID));
        drop(leases);
        assert_eq!(base(&pool.lease().unwrap()), FIRST_ID);
    }

    #[test]
    fn two_sidecars_take_different_blocks() {
        let directory = tempfile::tempdir().unwrap();
        let mine = IdPool::open(directory.path(), IdMode::Range).unwrap();
        let other = IdPool::open(directory.path(), IdMode::Range).unwrap();
        let (a, b) = (mine.lease().unwrap(), other.lease().unwrap());
        assert_eq!(base(&b) - base(&a), IDS_PER_BLOCK);
        // A sidecar that ends gives its block back.
        drop((a, mine));
        let third = IdPool::open(directory.path(), IdMode::Range).unwrap();
        assert_eq!(base(&third.lease().unwrap()), FIRST_ID);
    }

    #[test]
    fn without_root_every_vm_has_the_one_id() {
        let pool = IdPool::open(Path::new("/nonexistent"), IdMode::Single).unwrap();
        assert_eq!(pool.lease().unwrap().range(), IdRange::Single);
    }
}
