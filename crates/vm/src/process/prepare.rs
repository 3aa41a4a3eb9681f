//! From what was asked for to a request: everything that can be refused without asking the guest is refused here.

use agentos_guest_protocol::Bytes;
use agentos_guest_protocol::process::{SpawnRequest, Stdio};

use super::{SpawnError, SpawnInput};
use crate::path::{GuestPath, lossy};
use crate::spec::{Environment, EnvironmentRefusal, VmSpec};

/// The kernel's MAX_ARG_STRLEN, its NUL included.
const MAX_STRING_BYTES: usize = 128 * 1024;

/// The kernel never takes more than three quarters of its default stack for arguments and environment together.
const MAX_TOTAL_BYTES: usize = 6 * 1024 * 1024;

/// A pointer per string counts as well.
const POINTER_BYTES: usize = 8;

/// What every kind of process has.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) argv: Vec<Vec<u8>>,
    pub(crate) env: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) cwd: Option<Vec<u8>>,
}

pub(crate) fn spawn_request(
    spec: &VmSpec,
    program: Program,
    stdio: Stdio,
    supervised: bool,
) -> Result<SpawnRequest, SpawnError> {
    let environment = spec.environment().merged(program.env).map_err(|refusal| match refusal {
        EnvironmentRefusal::Name(name) => SpawnError::EnvironmentName(name),
        EnvironmentRefusal::Value(_) => SpawnError::Nul(SpawnInput::Environment),
    })?;
    let environment = match stdio {
        Stdio::Terminal { .. } => environment.or_insert("TERM", "xterm-256color"),
        Stdio::Pipes { .. } => environment,
    };
    request(spec, (program.argv, program.cwd), &environment, stdio, supervised)
}

fn request(
    spec: &VmSpec,
    (argv, cwd): (Vec<Vec<u8>>, Option<Vec<u8>>),
    environment: &Environment,
    stdio: Stdio,
    supervised: bool,
) -> Result<SpawnRequest, SpawnError> {
    if argv.first().is_none_or(Vec::is_empty) {
        return Err(SpawnError::EmptyArgv);
    }
    if argv.iter().any(|argument| argument.contains(&0)) {
        return Err(SpawnError::Nul(SpawnInput::Argument));
    }
    let env = environment.to_wire();
    check_size(argv.iter().map(Vec::len).chain(env.iter().map(|entry| entry.len())))?;
    let cwd = match cwd {
        Some(path) => GuestPath::parse(&path).map_err(SpawnError::Cwd)?.to_wire(),
        None => Bytes::from(spec.home().as_bytes().to_vec()),
    };
    let argv = argv.into_iter().map(Bytes::from).collect();
    Ok(SpawnRequest { argv, env, cwd, stdio, supervised })
}

/// As the kernel counts.
fn check_size(lengths: impl Iterator<Item = usize>) -> Result<(), SpawnError> {
    let mut total = 0_usize;
    for len in lengths {
        if len + 1 > MAX_STRING_BYTES {
            return Err(SpawnError::TooBig);
        }
        total += len + 1 + POINTER_BYTES;
        if total > MAX_TOTAL_BYTES {
            return Err(SpawnError::TooBig);
        }
    }
    Ok(())
}

/// What an error is about: the program's name.
pub(crate) fn object(request: &SpawnRequest) -> String {
    request.argv.first().map(|name| lossy(name).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::test_spec;

    fn prepare(argv: Vec<Vec<u8>>, env: Vec<(Vec<u8>, Vec<u8>)>) -> Result<SpawnRequest, SpawnError> {
        let program = Program { argv, env, cwd: None };
        spawn_request(&test_spec(), program, Stdio::Pipes { stdin: false }, false)
    }

    #[test]
    fn ten_thousand_arguments_are_fine() {
        let argv = (0..10_000).map(|number| number.to_string().into_bytes()).collect();
        assert_eq!(prepare(argv, Vec::new()).unwrap().argv.len(), 10_000);
    }

    #[test]
    fn what_the_kernel_would_not_take_is_e2big_before_anything_is_sent() {
        let long = vec![b'x'; MAX_STRING_BYTES];
        assert!(matches!(prepare(vec![b"x".to_vec(), long.clone()], Vec::new()), Err(SpawnError::TooBig)));
        let env = (0..800).map(|n| (format!("N{n}").into_bytes(), vec![b'x'; 127 * 1024])).collect();
        let error = prepare(vec![b"true".to_vec()], env).unwrap_err();
        assert_eq!(error.to_string(), "E2BIG: argument list too long, spawn");
        assert_eq!(error.errno(), Some(7));
        assert!(prepare(vec![long[1..].to_vec()], Vec::new()).is_ok());
    }

    #[test]
    fn nul_and_emptiness_are_refused() {
        assert!(matches!(prepare(Vec::new(), Vec::new()), Err(SpawnError::EmptyArgv)));
        assert!(matches!(prepare(vec![Vec::new()], Vec::new()), Err(SpawnError::EmptyArgv)));
        assert!(matches!(
            prepare(vec![b"a\0".to_vec()], Vec::new()),
            Err(SpawnError::Nul(SpawnInput::Argument))
        ));
        let env = |name: &[u8], value: &[u8]| vec![(name.to_vec(), value.to_vec())];
        let argv = || vec![b"true".to_vec()];
        assert!(matches!(prepare(argv(), env(b"A", b"\0")), Err(SpawnError::Nul(SpawnInput::Environment))));
        assert!(matches!(prepare(argv(), env(b"A=", b"")), Err(SpawnError::EnvironmentName(_))));
    }

    #[test]
    fn the_process_environment_wins_and_terminals_have_a_term() {
        let env = vec![(b"LANG".to_vec(), b"de_DE".to_vec())];
        let program = Program { argv: vec![b"sh".to_vec()], env, cwd: Some(b"/tmp/./".to_vec()) };
        let stdio = Stdio::Terminal { cols: 80, rows: 24 };
        let request = spawn_request(&test_spec(), program, stdio, false).unwrap();
        assert!(request.env.contains(&Bytes::from(b"LANG=de_DE".to_vec())));
        assert!(request.env.contains(&Bytes::from(b"TERM=xterm-256color".to_vec())));
        assert_eq!(request.cwd.as_slice(), b"/tmp");
    }
}
