//! Counts and times in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the histograms' buckets, in seconds.
const BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];

/// How long things took.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// Per bucket, not cumulated; the last one has no bound.
    counts: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    pub(super) fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BUCKETS.iter().position(|&bound| seconds <= bound).unwrap_or(BUCKETS.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(time.as_micros().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str) {
        let mut total = 0;
        for (index, count) in self.counts.iter().enumerate() {
            total += count.load(Ordering::Relaxed);
            let bound = BUCKETS.get(index).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let seconds = self.micros.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(text, "{name}_sum {seconds}\n{name}_count {total}");
    }
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// By endpoint and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    pub(super) prompt_tokens: AtomicU64,
    pub(super) generated_tokens: AtomicU64,
    /// Requests whose client left before the answer was complete.
    pub(super) abandoned: AtomicU64,
    /// Requests that wait for a place.
    pub(super) waiting: AtomicU64,
    /// Requests that have one.
    pub(super) active: AtomicU64,
    /// Answers that are being written.
    pub(super) streams: AtomicU64,
    /// From the arrival of a request to the end of its answer.
    pub(super) request: Histogram,
    /// From the arrival of a request to its first text.
    pub(super) first_text: Histogram,
}

impl Metrics {
    /// Counts a request that was answered with this status; a stream counts with its head's.
    pub(super) fn answered(&self, endpoint: &'static str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((endpoint, status)).or_default() += 1;
    }

    /// All of it, as Prometheus reads it.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let head = |text: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        head(&mut text, "didact_requests_total", "counter", "Requests by endpoint and status.");
        for ((endpoint, status), count) in self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(text, "didact_requests_total{{endpoint=\"{endpoint}\",code=\"{status}\"}} {count}");
        }
        for (name, kind, help, value) in [
            ("didact_prompt_tokens_total", "counter", "Tokens of prompts.", &self.prompt_tokens),
            ("didact_generated_tokens_total", "counter", "Generated tokens.", &self.generated_tokens),
            ("didact_abandoned_total", "counter", "Requests whose client left early.", &self.abandoned),
            ("didact_queue_length", "gauge", "Requests that wait for a place.", &self.waiting),
            ("didact_active_requests", "gauge", "Requests that have a place.", &self.active),
            ("didact_active_streams", "gauge", "Answers being written.", &self.streams),
        ] {
            head(&mut text, name, kind, help);
            let _ = writeln!(text, "{name} {}", value.load(Ordering::Relaxed));
        }
        for (name, help, histogram) in [
            ("didact_request_seconds", "Time to the end of an answer.", &self.request),
            ("didact_first_text_seconds", "Time to the first text of an answer.", &self.first_text),
        ] {
            head(&mut text, name, "histogram", help);
            histogram.write(&mut text, name);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_cumulative_and_complete() {
        let metrics = Metrics::default();
        metrics.answered("chat", 200);
        metrics.answered("chat", 200);
        metrics.answered("chat", 429);
        for millis in [1, 30, 400_000] {
            metrics.request.add(Duration::from_millis(millis));
        }
        let text = metrics.text();
        for line in [
            "didact_requests_total{endpoint=\"chat\",code=\"200\"} 2",
            "didact_requests_total{endpoint=\"chat\",code=\"429\"} 1",
            "didact_queue_length 0",
            "# TYPE didact_request_seconds histogram",
            "didact_request_seconds_bucket{le=\"0.005\"} 1",
            "didact_request_seconds_bucket{le=\"0.025\"} 1",
            "didact_request_seconds_bucket{le=\"0.05\"} 2",
            "didact_request_seconds_bucket{le=\"300\"} 2",
            "didact_request_seconds_bucket{le=\"+Inf\"} 3",
            "didact_request_seconds_sum 400.031",
            "didact_request_seconds_count 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
