//! How often faults that pass have been: the one thing that the model remembers between requests.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use crate::conversation::Reply;

/// Prompts that are remembered; an agent asks again within seconds.
const KEPT_PROMPTS: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Passing {
    /// A prompt's hash, and how often its fault was. Held for a look, never over an await.
    seen: Mutex<VecDeque<(u64, u32)>>,
}

impl Passing {
    /// The fault as long as it lasts, and the answer from then on.
    pub(super) fn settle(&self, reply: Reply) -> Reply {
        let Reply::Passing { prompt, times, fault, answer } = reply else { return reply };
        let mut hasher = DefaultHasher::new();
        prompt.hash(&mut hasher);
        let hash = hasher.finish();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let at = seen.iter().position(|(known, _)| *known == hash);
        let before = at.and_then(|at| seen.remove(at)).map_or(0, |(_, count)| count);
        seen.push_back((hash, before.saturating_add(1)));
        if seen.len() > KEPT_PROMPTS {
            seen.pop_front();
        }
        if before < times { *fault } else { Reply::Answer(answer) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::Answer;

    #[test]
    fn the_memory_is_bounded() {
        let passing = Passing::default();
        for number in 0..2 * KEPT_PROMPTS {
            let prompt = number.to_string();
            let answer = Answer::text("well");
            passing.settle(Reply::Passing { prompt, times: 1, fault: Box::new(Reply::Hang), answer });
        }
        assert_eq!(passing.seen.lock().unwrap().len(), KEPT_PROMPTS);
    }
}
