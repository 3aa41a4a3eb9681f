//! Which processes there are in a VM, as lists and as a tree.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;

use crate::convert;
use crate::convert::error::CallError;
use crate::error::Error;
use crate::vm::AgentOs;

/// A process that `spawn` started.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpawnedProcessInfo {
    /// Its pid inside the VM.
    pub pid: i32,
    /// The program, as it was given.
    pub command: String,
    /// The arguments after it.
    pub args: Vec<String>,
    /// Whether it still runs.
    pub running: bool,
    /// The code a shell would show, once it has exited.
    pub exit_code: Option<i32>,
}

/// A process of the VM, whoever started it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessInfo {
    /// Its pid inside the VM.
    pub pid: i32,
    /// Its parent's; 0 where the parent is not a process of the VM's own.
    pub ppid: i32,
    /// Its process group.
    pub pgid: i32,
    /// Its session.
    pub sid: i32,
    /// What kind of program runs it.
    pub driver: ProcessDriver,
    /// The first word of its command line.
    pub command: String,
    /// The arguments after it.
    pub args: Vec<String>,
    /// Its working directory.
    pub cwd: String,
    /// Whether it still runs.
    pub status: ProcessStatus,
    /// The code a shell would show, once it has exited.
    pub exit_code: Option<i32>,
    /// When it started, in milliseconds since the epoch.
    pub start_time: u64,
    /// When it exited, in milliseconds since the epoch.
    pub exit_time: Option<u64>,
}

/// What kind of program a process runs, from its executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProcessDriver {
    /// Any other program.
    Native,
    /// Node.js.
    Node,
    /// Python.
    Python,
    /// A shell.
    Shell,
}

/// Whether a process still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProcessStatus {
    /// It runs.
    Running,
    /// It has exited.
    Exited,
}

/// A process with its children. The process's own fields are reached directly: `node.pid`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessTreeNode {
    /// The process.
    pub process: ProcessInfo,
    /// The processes whose parent it is, by pid.
    pub children: Vec<ProcessTreeNode>,
}

impl Deref for ProcessTreeNode {
    type Target = ProcessInfo;

    fn deref(&self) -> &ProcessInfo {
        &self.process
    }
}

impl AgentOs {
    /// The processes started by `spawn`, exited ones too (the last 1,024).
    ///
    /// # Errors
    ///
    /// When the VM cannot be asked.
    pub async fn list_processes(&self) -> Result<Vec<SpawnedProcessInfo>, Error> {
        let request = convert::process::list_request(self.id());
        let reply =
            self.live()?.process().list_processes(request).await.map_err(|status| self.failed(status))?;
        let processes = reply.into_inner().processes.into_iter();
        processes.map(|process| convert::process::spawned(process).map_err(Error::from)).collect()
    }

    /// One process started by `spawn`.
    ///
    /// # Errors
    ///
    /// `NotFound`: `Process not found: PID`.
    pub async fn get_process(&self, pid: i32) -> Result<SpawnedProcessInfo, Error> {
        let all = self.list_processes().await?;
        // The newest: pids are used again.
        let found = all.into_iter().rev().find(|process| process.pid == pid);
        Ok(found.ok_or(CallError::NoSuchProcess { pid })?)
    }

    /// Every process in the VM now, and exited ones of `spawn` and `exec` for 60 s. Our own are never listed: a fresh
    /// VM has none.
    ///
    /// # Errors
    ///
    /// When the VM cannot be asked.
    pub async fn all_processes(&self) -> Result<Vec<ProcessInfo>, Error> {
        let request = convert::process::all_request(self.id());
        let reply =
            self.live()?.process().all_processes(request).await.map_err(|status| self.failed(status))?;
        let processes = reply.into_inner().processes.into_iter();
        processes.map(|process| convert::process::info(process).map_err(Error::from)).collect()
    }

    /// As [`all_processes`](Self::all_processes), parents holding their children.
    ///
    /// # Errors
    ///
    /// When the VM cannot be asked.
    pub async fn process_tree(&self) -> Result<Vec<ProcessTreeNode>, Error> {
        Ok(tree(self.all_processes().await?))
    }
}

/// Roots are the processes whose parent is not in the list. Every process appears exactly once, also when pids were
/// used again and parents seem to go in a circle.
fn tree(processes: Vec<ProcessInfo>) -> Vec<ProcessTreeNode> {
    let pids: HashSet<i32> = processes.iter().map(|process| process.pid).collect();
    let mut by_parent: HashMap<i32, Vec<ProcessInfo>> = HashMap::new();
    let mut roots = Vec::new();
    for process in processes {
        if process.ppid != process.pid && pids.contains(&process.ppid) {
            by_parent.entry(process.ppid).or_default().push(process);
        } else {
            roots.push(process);
        }
    }
    let mut forest = grow(roots, &mut by_parent);
    // What is left hangs in circles: cut each at its lowest pid.
    while let Some(parent) = by_parent.keys().min().copied() {
        let cut = by_parent.remove(&parent).unwrap_or_default();
        forest.extend(grow(cut, &mut by_parent));
    }
    forest.sort_by_key(|node| node.process.pid);
    forest
}

/// Builds the nodes level by level from an explicit stack: a guest can make a chain of processes as deep as its
/// process limit, which is deeper than a recursive walk should go.
fn grow(roots: Vec<ProcessInfo>, by_parent: &mut HashMap<i32, Vec<ProcessInfo>>) -> Vec<ProcessTreeNode> {
    struct Level {
        parent: Option<ProcessInfo>,
        waiting: std::vec::IntoIter<ProcessInfo>,
        done: Vec<ProcessTreeNode>,
    }
    let level = |parent, mut processes: Vec<ProcessInfo>| {
        processes.sort_by_key(|process| process.pid);
        Level { parent, waiting: processes.into_iter(), done: Vec::new() }
    };
    let mut stack = vec![level(None, roots)];
    let mut finished = Vec::new();
    while let Some(mut top) = stack.pop() {
        if let Some(process) = top.waiting.next() {
            let children = by_parent.remove(&process.pid).unwrap_or_default();
            stack.push(top);
            stack.push(level(Some(process), children));
            continue;
        }
        let children = top.done;
        match (top.parent, stack.last_mut()) {
            (Some(process), Some(above)) => above.done.push(ProcessTreeNode { process, children }),
            _ => finished = children,
        }
    }
    finished
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, ppid: i32) -> ProcessInfo {
        ProcessInfo {
            pid,
            ppid,
            pgid: pid,
            sid: pid,
            driver: ProcessDriver::Native,
            command: "sleep".into(),
            args: vec![],
            cwd: "/".into(),
            status: ProcessStatus::Running,
            exit_code: None,
            start_time: 0,
            exit_time: None,
        }
    }

    fn shape(nodes: &[ProcessTreeNode]) -> String {
        let node = |node: &ProcessTreeNode| match shape(&node.children).as_str() {
            "" => node.pid.to_string(),
            children => format!("{}({children})", node.pid),
        };
        nodes.iter().map(node).collect::<Vec<_>>().join(" ")
    }

    fn check(pairs: &[(i32, i32)], expected: &str) {
        assert_eq!(shape(&tree(pairs.iter().map(|(pid, ppid)| process(*pid, *ppid)).collect())), expected);
    }

    #[test]
    fn children_hang_below_their_parents_in_order() {
        check(&[(5, 2), (2, 0), (3, 2), (9, 5), (4, 0)], "2(3 5(9)) 4");
    }

    #[test]
    fn a_process_whose_parent_is_not_listed_is_a_root() {
        check(&[(7, 1), (8, 7)], "7(8)");
    }

    #[test]
    fn a_circle_of_reused_pids_loses_nobody() {
        check(&[(2, 3), (3, 2), (4, 4)], "3(2) 4");
    }

    #[test]
    fn a_chain_as_long_as_the_process_limit_is_built_without_deep_recursion() {
        let mut nodes = tree((1..=100_000).map(|pid| process(pid, pid - 1)).collect());
        let mut depth = 0;
        while let Some(mut node) = nodes.pop() {
            depth += 1;
            nodes = std::mem::take(&mut node.children);
        }
        assert_eq!(depth, 100_000);
    }
}
