//! Shells: processes on a PTY.
use bytes::Bytes;

use crate::process::{Exit, Output, SpawnError, StdinError};
use crate::vm::Vm;

#[derive(Debug, Clone)]
pub struct ShellSpec {
    /// Empty is the user's shell.
    pub argv: Vec<Vec<u8>>,
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    pub cwd: Option<Vec<u8>>,
    pub cols: u16,
    pub rows: u16,
}

impl Default for ShellSpec {
    fn default() -> Self {
        Self { argv: Vec::new(), env: Vec::new(), cwd: None, cols: 80, rows: 24 }
    }
}

#[derive(Debug, Clone)]
pub struct Shell;

#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    #[error("terminal has no size of {cols}x{rows}")]
    Size { cols: u16, rows: u16 },
    #[error("terminal is closed")]
    Closed,
    #[error("{}, resize", crate::errno::text(*errno))]
    Failed { errno: i32 },
}

impl Vm {
    pub async fn open_shell(&self, _spec: ShellSpec) -> Result<Shell, SpawnError> {
        todo!()
    }
    pub fn shell(&self, _id: &str) -> Option<Shell> {
        todo!()
    }
}

impl Shell {
    pub fn id(&self) -> &str {
        todo!()
    }
    pub fn pid(&self) -> i32 {
        todo!()
    }
    pub fn output(&self) -> &Output {
        todo!()
    }
    pub async fn write(&self, _data: Bytes) -> Result<(), StdinError> {
        todo!()
    }
    pub fn resize(&self, _cols: u16, _rows: u16) -> Result<(), ResizeError> {
        todo!()
    }
    pub async fn wait(&self) -> Exit {
        todo!()
    }
    pub fn exit(&self) -> Option<Exit> {
        todo!()
    }
    pub async fn close(&self) {
        todo!()
    }
}
