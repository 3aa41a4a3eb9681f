//! Who the calling thread is and what it may do. Every call acts on this thread alone: libc's wrappers would signal
//! all threads, which a forked child of PID 1 can't afford and a file thread doesn't want.

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use crate::clone::last_errno;

/// Capabilities of the VM's root when processes run as root: what package managers and servers need, and nothing that
/// reaches beyond the VM's own files, ids and processes.
pub fn guest_root_capabilities() -> CapabilitySet {
    CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::KILL
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID
        | CapabilitySet::SETPCAP
        | CapabilitySet::NET_BIND_SERVICE
}

/// Sets real, effective and saved ids.
pub fn set_ids(uid: u32, gid: u32) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// Sets the effective user id alone.
pub fn set_effective_uid(uid: u32) -> Result<(), Errno> {
    rustix::thread::set_thread_res_uid(rustix::process::getuid(), Uid::from_raw(uid), Uid::from_raw(0))
}

pub fn drop_groups() -> Result<(), Errno> {
    rustix::thread::set_thread_groups(&[])
}

/// From now on a change of user ids leaves the capabilities of this thread, and of those it starts, as they are.
pub fn keep_capabilities_across_ids() -> Result<(), Errno> {
    rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)
}

/// What this thread creates from now on belongs to these ids; its rights stay what its capabilities say.
pub fn create_files_as(uid: u32, gid: u32) {
    // setfsuid reports no error: it answers the former id either way.
    // SAFETY: both calls take one integer and change this thread's credentials alone.
    unsafe { libc::syscall(libc::SYS_setfsgid, gid) };
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
}

/// Cuts the bounding set down to `keep`, drops all ambient capabilities and sets the other sets to `keep`.
///
/// The sets themselves are set after the change of ids (see [`set_capabilities`]); the bounding set needs
/// CAP_SETPCAP and so comes before.
pub fn cut_bounding_set(keep: CapabilitySet) -> Result<(), Errno> {
    let last = 63;
    for number in 0..=last {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(capability) {
            continue;
        }
        // Answers EINVAL for the first number this kernel has no capability for.
        // SAFETY: PR_CAPBSET_DROP takes an integer and no pointers.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number as libc::c_ulong, 0, 0, 0) };
        if result != 0 {
            return match last_errno() {
                Errno::INVAL => Ok(()),
                other => Err(other),
            };
        }
    }
    Ok(())
}

/// Sets the permitted, effective and inheritable sets of this thread.
pub fn set_capabilities(keep: CapabilitySet) -> Result<(), Errno> {
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() },
    )
}

/// Keeps the process from being traced, dumped or looked into through /proc by equals.
pub fn set_dumpable(dumpable: bool) -> Result<(), Errno> {
    // SAFETY: PR_SET_DUMPABLE takes an integer and no pointers.
    let result = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(dumpable), 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}
