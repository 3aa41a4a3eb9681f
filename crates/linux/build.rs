//! Compiles the guest's seccomp policy (`resources/seccomp`) into a table of instructions for `src/seccomp.rs`.

#[path = "build/seccomp/mod.rs"]
mod seccomp;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fmt, fs, io};

use seccomp::source::{CALLS, CONSTANTS, POLICY, SourceError};
use seccomp::tables::Arch;
use seccomp::{Checked, Sources};

/// Why there is no program, and so no crate.
enum BuildError {
    Source(SourceError),
    Read(PathBuf, io::Error),
    Write(PathBuf, io::Error),
    /// Cargo sets it for every build script.
    NoVariable(&'static str),
    NoNumbersFor(String),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(error) => error.fmt(f),
            Self::Read(path, error) => write!(f, "can't read {}: {error}", path.display()),
            Self::Write(path, error) => write!(f, "can't write {}: {error}", path.display()),
            Self::NoVariable(name) => write!(f, "{name} is not set: not run by Cargo"),
            Self::NoNumbersFor(arch) => {
                write!(f, "resources/seccomp/{CALLS} has no system call numbers for {arch}")
            }
        }
    }
}

fn main() -> ExitCode {
    let (message, code) = match generate() {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) => (format!("cargo::error={error}"), ExitCode::FAILURE),
    };
    // If Cargo no longer listens there is nobody left to tell.
    let _ = writeln!(io::stdout(), "{message}");
    code
}

fn generate() -> Result<(), BuildError> {
    let manifest = variable("CARGO_MANIFEST_DIR")?;
    let resources = Path::new(&manifest).join("../../resources/seccomp");
    let out = Path::new(&variable("OUT_DIR")?).join("guest_seccomp.rs");
    let arch = variable("CARGO_CFG_TARGET_ARCH")?;
    let arch = Arch::from_cargo(&arch).ok_or(BuildError::NoNumbersFor(arch))?;

    let calls = read(&resources.join(CALLS))?;
    let constants = read(&resources.join(CONSTANTS))?;
    let policy = read(&resources.join(POLICY))?;
    let checked = seccomp::check(&Sources { calls: &calls, constants: &constants, policy: &policy })
        .map_err(BuildError::Source)?;
    let text = render(&checked, arch)?;
    fs::write(&out, text).map_err(|error| BuildError::Write(out, error))
}

fn render(checked: &Checked, arch: Arch) -> Result<String, BuildError> {
    let program = checked.compile(arch).map_err(BuildError::Source)?;
    let mut text = format!("static GUEST: [libc::sock_filter; {}] = [\n", program.len());
    for seccomp::assemble::Instruction { code, jt, jf, k } in program {
        // Writing to a String can't fail.
        let _ =
            writeln!(text, "    libc::sock_filter {{ code: {code:#04x}, jt: {jt}, jf: {jf}, k: {k:#x} }},");
    }
    text.push_str("];\n");
    Ok(text)
}

fn variable(name: &'static str) -> Result<String, BuildError> {
    env::var(name).map_err(|_| BuildError::NoVariable(name))
}

fn read(path: &Path) -> Result<String, BuildError> {
    let _ = writeln!(io::stdout(), "cargo::rerun-if-changed={}", path.display());
    fs::read_to_string(path).map_err(|error| BuildError::Read(path.to_owned(), error))
}
