//! `/metrics` as Prometheus reads it: OpenMetrics text over HTTP.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What one scrape found.
#[derive(Debug)]
pub(crate) struct Scrape {
    pub(crate) head: String,
    pub(crate) text: String,
    pub(crate) samples: Vec<Sample>,
}

/// One line with a number.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// Asks for the metrics of a driver that listens.
pub(crate) async fn scrape(address: SocketAddr) -> Scrape {
    let (head, text) = scrape_as(address, "application/openmetrics-text;version=1.0.0").await;
    assert!(text.ends_with("# EOF\n"), "{text}");
    let samples = samples(&text);
    Scrape { head, text, samples }
}

/// The lines with numbers of a text.
pub(crate) fn samples(text: &str) -> Vec<Sample> {
    text.lines().filter(|it| !it.starts_with('#')).map(sample).collect()
}

/// Head and text of the answer to who accepts this.
pub(crate) async fn scrape_as(address: SocketAddr, accept: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request =
        format!("GET /metrics HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), text.to_owned())
}

/// The answer to a GET; nothing where no server answers.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

impl Scrape {
    /// The value of the one series with this name and these labels, whatever other labels it has.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found = self.all(name, labels);
        let first = found.next()?;
        assert_eq!(found.next(), None, "{name} {labels:?} is not one series: {}", self.text);
        Some(first.value)
    }

    /// Every series with this name and these labels.
    pub(crate) fn all<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&str, &str)],
    ) -> impl Iterator<Item = &'a Sample> {
        let has =
            |it: &Sample, (key, value): &(&str, &str)| it.labels.get(*key).is_some_and(|it| it == value);
        self.samples.iter().filter(move |it| it.name == name && labels.iter().all(|label| has(it, label)))
    }
}

/// Reads a line; no value of ours has a quote, a comma or a brace in it.
fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.strip_suffix('}').unwrap().split(',').filter(|it| !it.is_empty());
    let label = |it: &str| {
        let (key, value) = it.split_once('=').unwrap();
        (key.to_owned(), value.trim_matches('"').to_owned())
    };
    Sample { name: name.to_owned(), labels: labels.map(label).collect(), value: value.parse().unwrap() }
}
