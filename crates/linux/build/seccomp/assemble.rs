//! Instructions, and how a graph of decisions becomes a list of them.
//!
//! The list is written from its end: classic BPF jumps forward only, so what a node leads to must already have its
//! place. Equal nodes are one node (`Graph` sees to that) and one place in the list, as long as a jump reaches it.

use std::collections::BTreeMap;

use super::source::Problem;

/// `struct sock_filter` of linux/filter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

// The few operations in use (linux/bpf_common.h): class, size or operation, source.
/// BPF_LD | BPF_W | BPF_ABS: a 32-bit word of `seccomp_data` into the accumulator.
pub(crate) const LOAD: u16 = 0x20;
/// BPF_ALU | BPF_AND | BPF_K
pub(crate) const AND: u16 = 0x54;
/// BPF_JMP | BPF_JA
pub(crate) const JUMP: u16 = 0x05;
/// BPF_JMP | BPF_JEQ | BPF_K
pub(crate) const JUMP_EQUAL: u16 = 0x15;
/// BPF_JMP | BPF_JGE | BPF_K, unsigned
pub(crate) const JUMP_AT_LEAST: u16 = 0x35;
/// BPF_JMP | BPF_JSET | BPF_K
pub(crate) const JUMP_ANY_BIT: u16 = 0x45;
/// BPF_RET | BPF_K
pub(crate) const RETURN: u16 = 0x06;

/// BPF_MAXINSNS, linux/bpf_common.h.
const MAX_INSTRUCTIONS: usize = 4096;

/// A node of a graph, by its place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id(usize);

/// One step and what comes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Return(u32),
    /// `LOAD` or `AND`.
    Step {
        code: u16,
        k: u32,
        next: Id,
    },
    /// One of the conditional jumps.
    Branch {
        code: u16,
        k: u32,
        then: Id,
        otherwise: Id,
    },
}

/// Nodes lead to older nodes only, so that there is no circle.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    nodes: Vec<Node>,
    ids: BTreeMap<Node, Id>,
}

impl Graph {
    pub(crate) fn returns(&mut self, value: u32) -> Id {
        self.intern(Node::Return(value))
    }

    pub(crate) fn step(&mut self, code: u16, k: u32, next: Id) -> Id {
        self.intern(Node::Step { code, k, next })
    }

    pub(crate) fn branch(&mut self, code: u16, k: u32, then: Id, otherwise: Id) -> Id {
        if then == otherwise { then } else { self.intern(Node::Branch { code, k, then, otherwise }) }
    }

    fn intern(&mut self, node: Node) -> Id {
        *self.ids.entry(node).or_insert_with(|| {
            self.nodes.push(node);
            Id(self.nodes.len() - 1)
        })
    }

    /// The program that starts at `start`.
    pub(crate) fn assemble(&self, start: Id) -> Result<Vec<Instruction>, Problem> {
        let mut assembler = Assembler { graph: self, reversed: Vec::new(), places: BTreeMap::new() };
        assembler.place(start)?;
        let mut program = assembler.reversed;
        program.reverse();
        if program.len() > MAX_INSTRUCTIONS { Err(Problem::TooLong(program.len())) } else { Ok(program) }
    }
}

struct Assembler<'a> {
    graph: &'a Graph,
    /// The last instruction first.
    reversed: Vec<Instruction>,
    /// Where in `reversed` a jump finds a node, at its latest copy.
    places: BTreeMap<Id, usize>,
}

impl Assembler<'_> {
    /// Writes the node in front of all there is, with whatever it leads to that has no place yet.
    fn place(&mut self, id: Id) -> Result<(), Problem> {
        if self.places.contains_key(&id) {
            return Ok(());
        }
        let instruction = match self.graph.nodes[id.0] {
            Node::Return(k) => Instruction { code: RETURN, jt: 0, jf: 0, k },
            Node::Step { code, k, next } => {
                self.place(next)?;
                if self.distance(next) != 0 {
                    self.come_near(next)?;
                }
                Instruction { code, jt: 0, jf: 0, k }
            }
            Node::Branch { code, k, then, otherwise } => {
                // What is written last is next: the way on should be the short one.
                self.place(then)?;
                self.place(otherwise)?;
                let (jt, jf) = loop {
                    let far = |id| u8::try_from(self.distance(id)).map_err(|_| id);
                    match (far(then), far(otherwise)) {
                        (Ok(jt), Ok(jf)) => break (jt, jf),
                        // Each turn brings one of the two next to the jump and moves the other by one.
                        (Err(id), _) | (_, Err(id)) => self.come_near(id)?,
                    }
                };
                Instruction { code, jt, jf, k }
            }
        };
        self.push(id, instruction);
        Ok(())
    }

    /// Gives a node that is out of reach a second entry at the front: a copy of a return, else a jump, whose reach
    /// is not limited.
    fn come_near(&mut self, id: Id) -> Result<(), Problem> {
        let instruction = match self.graph.nodes[id.0] {
            Node::Return(k) => Instruction { code: RETURN, jt: 0, jf: 0, k },
            Node::Step { .. } | Node::Branch { .. } => {
                let distance = self.distance(id);
                let k = u32::try_from(distance).map_err(|_| Problem::TooLong(distance))?;
                Instruction { code: JUMP, jt: 0, jf: 0, k }
            }
        };
        self.push(id, instruction);
        Ok(())
    }

    fn push(&mut self, id: Id, instruction: Instruction) {
        self.places.insert(id, self.reversed.len());
        self.reversed.push(instruction);
    }

    /// How many instructions lie between the one that is written next and the node, which has a place.
    fn distance(&self, id: Id) -> usize {
        self.places.get(&id).map_or(usize::MAX, |place| self.reversed.len() - 1 - place)
    }
}
