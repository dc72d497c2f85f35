//! How long to wait before asking again.

use didact_core::seed::Streams;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use std::time::Duration;

/// Most that a server's own wish is honoured; who asks for more gets this.
const MOST_ASKED: Duration = Duration::from_mins(10);

/// Exponential backoff: the wait doubles from attempt to attempt, and a random share of up to half of it is left out, so
/// that clients that failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Wait after the first attempt.
    pub first: Duration,
    /// Longest wait.
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(500), most: Duration::from_mins(1) }
    }
}

impl Backoff {
    /// The wait after `attempt` (from 0) of the request `key`, at least as long as the server asked for. A pure function
    /// of the streams' seed, the key and the attempt.
    pub(super) fn wait(&self, streams: Streams, key: u64, attempt: u32, asked: Option<Duration>) -> Duration {
        let doubled = self.first.saturating_mul(1 << attempt.min(24)).min(self.most);
        let draw = (streams.key("backoff", &[key, u64::from(attempt)]) >> 11) as f64 / (1_u64 << 53) as f64;
        doubled.mul_f64(1.0 - draw / 2.0).max(asked.unwrap_or_default().min(MOST_ASKED))
    }
}

/// What `Retry-After` says: a number of seconds, or a date.
pub(super) fn retry_after(header: &str, now: Timestamp) -> Option<Duration> {
    let header = header.trim();
    if let Ok(seconds) = header.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let then = DateTimeParser::new().parse_timestamp(header).ok()?;
    Some(Duration::try_from(then - now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_jitter_takes_at_most_half() {
        let (backoff, streams) =
            (Backoff { first: Duration::from_secs(1), most: Duration::from_mins(1) }, Streams::new(7));
        for attempt in 0..40 {
            let full = (1_u64 << attempt.min(20)).min(60);
            let wait = backoff.wait(streams, 3, attempt, None).as_secs_f64();
            assert!((full as f64 / 2.0..=full as f64).contains(&wait), "attempt {attempt}: {wait}");
            assert_eq!(wait, backoff.wait(streams, 3, attempt, None).as_secs_f64(), "the same seed, the same wait");
        }
        let waits: std::collections::BTreeSet<_> = (0..100).map(|key| backoff.wait(streams, key, 0, None)).collect();
        assert!(waits.len() > 90, "requests wait differently");
    }

    #[test]
    fn what_the_server_asks_for_is_the_least_within_reason() {
        let (backoff, streams) = (Backoff::default(), Streams::new(7));
        let wait = |seconds| backoff.wait(streams, 0, 0, Some(Duration::from_secs(seconds)));
        assert_eq!(wait(30), Duration::from_secs(30));
        assert!(wait(0) >= Duration::from_millis(250));
        assert_eq!(wait(1_000_000), MOST_ASKED);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "1994-11-06T08:49:00Z".parse().expect("a time");
        assert_eq!(retry_after("120", now), Some(Duration::from_mins(2)));
        assert_eq!(retry_after(" 0.5 ", now), Some(Duration::from_millis(500)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(37)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now), Some(Duration::ZERO));
        for nonsense in ["", "soon", "-1", "NaN", "1e300"] {
            assert_eq!(retry_after(nonsense, now), None, "{nonsense}");
        }
    }
}
