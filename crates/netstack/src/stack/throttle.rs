//! The bandwidth of one VM, shared by all of its flows.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What may go at once after a pause, as a part of a second's worth.
const BURST: Duration = Duration::from_millis(50);

/// A burst is at least one of the largest packets.
const MIN_BURST_BYTES: f64 = 65_536.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Out,
    In,
}

#[derive(Debug)]
pub(super) struct Throttle {
    /// Bytes per second, None without a limit.
    rate: Option<f64>,
    // Held to take from it; never over an await.
    buckets: Mutex<[Bucket; 2]>,
}

#[derive(Debug)]
struct Bucket {
    /// Negative after a datagram that did not fit.
    tokens: f64,
    filled: Instant,
}

impl Throttle {
    pub(super) fn new(bandwidth_bytes: Option<u64>) -> Self {
        let bucket = || Bucket { tokens: MIN_BURST_BYTES, filled: Instant::now() };
        Self { rate: bandwidth_bytes.map(|rate| rate as f64), buckets: Mutex::new([bucket(), bucket()]) }
    }

    /// How many of the wanted bytes may go now, which is one at least, or when to ask again.
    pub(super) fn allowance(
        &self,
        direction: Direction,
        wanted: usize,
        now: Instant,
    ) -> Result<usize, Instant> {
        let Some(rate) = self.rate else { return Ok(wanted) };
        let tokens = self.fill(direction, rate, now);
        if tokens >= 1.0 {
            return Ok(wanted.min(tokens as usize));
        }
        // Not for a single byte: for as many as make the way worth while.
        let missing = (MIN_BURST_BYTES / 4.0).min(wanted.max(1) as f64) - tokens;
        Err(now + Duration::from_secs_f64((missing / rate).clamp(0.001, 1.0)))
    }

    /// Takes what has gone.
    pub(super) fn take(&self, direction: Direction, bytes: usize) {
        if self.rate.is_some() {
            let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
            bucket(&mut buckets, direction).tokens -= bytes as f64;
        }
    }

    fn fill(&self, direction: Direction, rate: f64, now: Instant) -> f64 {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = bucket(&mut buckets, direction);
        let passed = now.saturating_duration_since(bucket.filled);
        bucket.filled = now.max(bucket.filled);
        let burst = (rate * BURST.as_secs_f64()).max(MIN_BURST_BYTES);
        bucket.tokens = (bucket.tokens + rate * passed.as_secs_f64()).min(burst);
        bucket.tokens
    }
}

fn bucket(buckets: &mut [Bucket; 2], direction: Direction) -> &mut Bucket {
    let [out, inward] = buckets;
    match direction {
        Direction::Out => out,
        Direction::In => inward,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lets_through_as_much_as_the_limit_says() {
        let throttle = Throttle::new(Some(1_000_000));
        let start = Instant::now();
        let (mut now, mut gone) = (start, 0);
        while now < start + Duration::from_secs(1) {
            match throttle.allowance(Direction::Out, 10_000, now) {
                Ok(bytes) => {
                    throttle.take(Direction::Out, bytes);
                    gone += bytes;
                }
                Err(again) => now = again,
            }
        }
        assert!((1_000_000..1_100_000).contains(&gone), "{gone}");
        // The other direction has its own.
        assert!(throttle.allowance(Direction::In, 10_000, start).is_ok());
    }

    #[test]
    fn without_a_limit_everything_goes() {
        let throttle = Throttle::new(None);
        throttle.take(Direction::In, 1 << 40);
        assert_eq!(throttle.allowance(Direction::In, 1 << 30, Instant::now()), Ok(1 << 30));
    }
}
