//! One attempt at one request.

use super::RemoteOptions;
use super::backoff::retry_after;
use super::error::RemoteError;
use super::events::{Stream, excerpt, message_of};
use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url, redirect};
use serde_json::{Map, Value};
use std::net::IpAddr;
use std::time::Duration;

/// Most bytes of an error's text that are looked at.
const ERROR_BYTES: usize = 64 << 10;

/// Why an attempt gave no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The next attempt may do better.
    Passing {
        message: String,
        /// How long the server asks to wait.
        asked: Option<Duration>,
        /// Whether there was a server at all.
        is_reached: bool,
    },
    /// The server will not answer this request.
    Refused { status: u16, message: String },
    /// The server will not answer anything.
    Broken(RemoteError),
}

impl Failure {
    fn passing(message: impl Into<String>) -> Self {
        Self::Passing { message: message.into(), asked: None, is_reached: true }
    }
}

/// The way to an endpoint. Its `Debug` does not show the key.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    /// Ends in `/`.
    base: Url,
    key: Option<HeaderValue>,
    timeout: Duration,
    most_bytes: usize,
    streams: bool,
}

impl Client {
    pub(super) fn new(options: &RemoteOptions) -> Result<Self, RemoteError> {
        let base = base(&options.base_url)?;
        let is_here = match base.host_str() {
            Some("localhost") => true,
            Some(host) => host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
            None => false,
        };
        // An endpoint that moved is an error, not somewhere else to send prompts and keys to.
        let mut builder = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .connect_timeout(options.timeout.min(Duration::from_secs(30)))
            .user_agent(concat!("didact/", env!("CARGO_PKG_VERSION")));
        if is_here {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|e| RemoteError::Client(chain(&e)))?;
        let key = options.api_key_env.as_deref().map(key).transpose()?;
        Ok(Self {
            http,
            base,
            key,
            timeout: options.timeout,
            most_bytes: options.max_answer_bytes,
            streams: options.stream,
        })
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Asks once.
    pub(super) async fn ask(&self, path: &str, body: &Map<String, Value>) -> Result<Value, Failure> {
        let mut body = body.clone();
        if self.streams {
            body.insert("stream".into(), true.into());
            body.insert("stream_options".into(), serde_json::json!({"include_usage": true}));
            return self.exchange(path, &body).await;
        }
        self.within(self.exchange(path, &body)).await?
    }

    async fn within<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let message = || format!("nothing came for {:?}", self.timeout);
        tokio::time::timeout(self.timeout, work).await.map_err(|_| Failure::passing(message()))
    }

    async fn exchange(&self, path: &str, body: &Map<String, Value>) -> Result<Value, Failure> {
        let bytes = serde_json::to_vec(body).map_err(|e| Failure::Refused { status: 0, message: e.to_string() })?;
        let mut request = self.http.post(self.url(path)).header(CONTENT_TYPE, "application/json").body(bytes);
        if let Some(key) = &self.key {
            request = request.header(reqwest::header::AUTHORIZATION, key);
        }
        let mut response = self.within(request.send()).await?.map_err(|e| Failure::Passing {
            is_reached: !e.is_connect(),
            message: chain(&e),
            asked: None,
        })?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(path, response).await);
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if kind.starts_with("text/event-stream") {
            let mut stream = Stream::default();
            let mut length = 0;
            while let Some(bytes) = self.piece(&mut response).await? {
                length += bytes.len();
                self.check_length(length)?;
                stream.push(&bytes).map_err(|e| Failure::passing(e.to_string()))?;
            }
            return stream.finish().map_err(|e| Failure::passing(e.to_string()));
        }
        let mut text = Vec::new();
        while let Some(bytes) = self.piece(&mut response).await? {
            self.check_length(text.len() + bytes.len())?;
            text.extend_from_slice(&bytes);
        }
        serde_json::from_slice(&text).map_err(|_| {
            Failure::passing(format!("the answer is not JSON but {}", excerpt(&String::from_utf8_lossy(&text))))
        })
    }

    /// The next bytes of a response's body.
    async fn piece(&self, response: &mut Response) -> Result<Option<Vec<u8>>, Failure> {
        let bytes = self.within(response.chunk()).await?;
        let bytes = bytes.map_err(|e| Failure::passing(format!("the answer broke off: {}", chain(&e))))?;
        Ok(bytes.map(|bytes| bytes.to_vec()))
    }

    fn check_length(&self, length: usize) -> Result<(), Failure> {
        if length <= self.most_bytes {
            return Ok(());
        }
        Err(Failure::Refused { status: 200, message: format!("the answer is longer than {} bytes", self.most_bytes) })
    }

    /// What a status other than 200 means.
    async fn refusal(&self, path: &str, mut response: Response) -> Failure {
        let status = response.status();
        let header = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
        let asked = header.and_then(|header| retry_after(header, Timestamp::now()));
        let mut text = Vec::new();
        while text.len() < ERROR_BYTES
            && let Ok(Some(bytes)) = self.piece(&mut response).await
        {
            text.extend_from_slice(&bytes);
        }
        let text = String::from_utf8_lossy(&text);
        let error: Value = serde_json::from_str(&text).unwrap_or_default();
        let (code, message) = match error.get("error") {
            Some(error) => (error["code"].as_str().unwrap_or_default(), message_of(error)),
            None => ("", excerpt(&text)),
        };
        let broken = |message: String| {
            Failure::Broken(RemoteError::Refused { url: self.url(path), status: status.as_u16(), message })
        };
        match status.as_u16() {
            300..=399 => {
                let to = response.headers().get("location").and_then(|v| v.to_str().ok()).unwrap_or("elsewhere");
                broken(format!("it has moved to {}", excerpt(to)))
            }
            401..=405 => broken(message),
            429 if code == "insufficient_quota" => broken(message),
            408 | 409 | 425 | 429 | 500..=599 => {
                Failure::Passing { message: format!("status {}: {message}", status.as_u16()), asked, is_reached: true }
            }
            status => Failure::Refused { status, message },
        }
    }
}

fn base(text: &str) -> Result<Url, RemoteError> {
    let parsed = Url::parse(text);
    let secretless = || match &parsed {
        Ok(url) => {
            let mut url = url.clone();
            let _ = url.set_password(None);
            let _ = url.set_username("");
            url.set_query(None);
            url.to_string()
        }
        Err(_) => excerpt(text),
    };
    let wrong = |cause| RemoteError::Url { url: secretless(), cause };
    let Ok(url) = &parsed else { return Err(wrong("it cannot be read as one")) };
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(wrong("it begins with neither http:// nor https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("it holds a password, which would be logged; use the variable for the API key"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("it has a query"));
    }
    let path = url.path().trim_end_matches('/');
    if path.ends_with("/completions") {
        return Err(wrong("it names one of the endpoints"));
    }
    let mut base = url.clone();
    base.set_path(&format!("{path}/"));
    Ok(base)
}

/// The header with the key that a variable holds.
fn key(variable: &str) -> Result<HeaderValue, RemoteError> {
    let wrong = |cause| RemoteError::Key { variable: variable.to_owned(), cause };
    let key = std::env::var(variable).map_err(|_| wrong("it is not set"))?;
    if key.trim().is_empty() {
        return Err(wrong("it is empty"));
    }
    let header = HeaderValue::from_str(&format!("Bearer {}", key.trim()));
    let mut header = header.map_err(|_| wrong("it holds characters that no key has"))?;
    header.set_sensitive(true);
    Ok(header)
}

/// An error with its causes; the address is said elsewhere.
fn chain(error: &reqwest::Error) -> String {
    let mut parts = Vec::new();
    let mut next: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(cause) = next {
        parts.push(cause.to_string());
        next = cause.source();
    }
    if parts.is_empty() { error.to_string() } else { parts.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_and_secrets_in_them_are_not_repeated() {
        assert_eq!(base("http://localhost:8080/v1/").expect("it is one").as_str(), "http://localhost:8080/v1/");
        assert_eq!(base("https://example.org").expect("it is one").as_str(), "https://example.org/");
        let cases = [
            "ftp://x/v1",
            "localhost:8080",
            "",
            "http://u:secret@x/v1",
            "http://x/v1?key=secret",
            "http://x/v1/chat/completions",
        ];
        for text in cases {
            let error = base(text).expect_err("it is none").to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
