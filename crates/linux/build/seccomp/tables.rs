//! The facts the policy rests on: which number a call has on which architecture, and the ABI's named numbers.

use std::collections::BTreeMap;

use super::source::{CALLS, CONSTANTS, Problem, SourceError, lines, number};

/// The architectures a program can be made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    X86_64,
    Aarch64,
}

impl Arch {
    /// By the name Cargo gives it in `CARGO_CFG_TARGET_ARCH`.
    pub(crate) fn from_cargo(name: &str) -> Option<Self> {
        match name {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// What the kernel puts into `seccomp_data.arch` for calls of the native ABI (`AUDIT_ARCH_*`, linux/audit.h).
    pub(crate) fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::Aarch64 => 0xc000_00b7,
        }
    }

    /// The first number of another ABI that shares the audit value: x32 marks its calls with bit 30.
    ///
    /// -1 is not one of them although it has the bit: a tracer that skips a call sets the number to -1 before the
    /// filter is asked.
    pub(crate) fn first_foreign_number(self) -> Option<u32> {
        match self {
            Self::X86_64 => Some(0x4000_0000),
            Self::Aarch64 => None,
        }
    }
}

/// One row of `syscalls.table`.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) line: usize,
    x86_64: Option<u32>,
    aarch64: Option<u32>,
}

impl Call {
    pub(crate) fn number(&self, arch: Arch) -> Option<u32> {
        match arch {
            Arch::X86_64 => self.x86_64,
            Arch::Aarch64 => self.aarch64,
        }
    }
}

/// `syscalls.table`, in its order.
#[derive(Debug)]
pub(crate) struct Calls {
    pub(crate) rows: Vec<Call>,
}

impl Calls {
    pub(crate) fn parse(text: &str) -> Result<Self, SourceError> {
        let mut rows: Vec<Call> = Vec::new();
        for line in lines(CALLS, text)? {
            let fail = |problem| SourceError::new(CALLS, line.number, problem);
            let words: Vec<&str> = line.text.split_whitespace().collect();
            let [name, x86_64, aarch64] = words[..] else {
                return Err(fail(Problem::Shape("a name and two numbers or `-`")));
            };
            let column = |word: &str| match word {
                "-" => Ok(None),
                _ => number(word).map(Some).ok_or_else(|| fail(Problem::NotANumber(word.to_owned()))),
            };
            let row = Call {
                name: name.to_owned(),
                line: line.number,
                x86_64: column(x86_64)?,
                aarch64: column(aarch64)?,
            };
            if row.x86_64.is_none() && row.aarch64.is_none() {
                return Err(fail(Problem::Shape("a number on one architecture at least")));
            }
            for arch in [Arch::X86_64, Arch::Aarch64] {
                let same = rows
                    .iter()
                    .find(|other| row.number(arch).is_some() && other.number(arch) == row.number(arch));
                if let (Some(other), Some(value)) = (same, row.number(arch)) {
                    return Err(fail(Problem::Repeated(value.to_string(), other.line)));
                }
            }
            if let Some(other) = rows.iter().find(|other| other.name == row.name) {
                return Err(fail(Problem::Repeated(row.name, other.line)));
            }
            rows.push(row);
        }
        Ok(Self { rows })
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Call> {
        self.rows.iter().find(|call| call.name == name)
    }
}

#[derive(Debug)]
struct Constant {
    value: u32,
    line: usize,
    used: bool,
}

/// `constants.table`, and which of its names something has used.
#[derive(Debug)]
pub(crate) struct Constants {
    by_name: BTreeMap<String, Constant>,
}

impl Constants {
    pub(crate) fn parse(text: &str) -> Result<Self, SourceError> {
        let mut constants = Self { by_name: BTreeMap::new() };
        for line in lines(CONSTANTS, text)? {
            let fail = |problem| SourceError::new(CONSTANTS, line.number, problem);
            let words: Vec<&str> = line.text.split_whitespace().collect();
            let [name, "=", value] = words[..] else {
                return Err(fail(Problem::Shape("NAME = value")));
            };
            if !name.starts_with(|c: char| c.is_ascii_uppercase()) {
                return Err(fail(Problem::Shape("a NAME in capitals")));
            }
            let value = constants.value(value).map_err(fail)?;
            if let Some(before) = constants.by_name.get(name) {
                return Err(fail(Problem::Repeated(name.to_owned(), before.line)));
            }
            constants.by_name.insert(name.to_owned(), Constant { value, line: line.number, used: false });
        }
        Ok(constants)
    }

    /// The value of numbers and names joined by `|`; the names count as used.
    pub(crate) fn value(&mut self, expression: &str) -> Result<u32, Problem> {
        let mut value = 0;
        for term in expression.split('|') {
            value |= if term.starts_with(|c: char| c.is_ascii_digit()) {
                number(term).ok_or_else(|| Problem::NotANumber(term.to_owned()))?
            } else {
                let constant =
                    self.by_name.get_mut(term).ok_or_else(|| Problem::UnknownConstant(term.to_owned()))?;
                constant.used = true;
                constant.value
            };
        }
        Ok(value)
    }

    /// A name nobody uses is a rule somebody forgot, or a typing error in one.
    pub(crate) fn refuse_unused(&self) -> Result<(), SourceError> {
        match self
            .by_name
            .iter()
            .filter(|(_, constant)| !constant.used)
            .min_by_key(|(_, constant)| constant.line)
        {
            Some((name, constant)) => {
                Err(SourceError::new(CONSTANTS, constant.line, Problem::UnusedConstant(name.clone())))
            }
            None => Ok(()),
        }
    }
}
