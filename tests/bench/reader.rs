//! Prometheus' part: reads `/metrics` over one connection, at a steady pace.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

/// Reads until it is dropped.
pub(crate) struct Reader {
    count: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Reader {
    /// Reads once in each `pause`.
    pub(crate) fn every(address: SocketAddr, pause: Duration) -> Self {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let task = tokio::spawn(async move {
            if let Err(error) = read_on(address, pause, &counted).await {
                println!("reading the metrics has ended: {error:#}");
            }
        });
        Self { count, task }
    }

    /// Readings so far.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read_on(address: SocketAddr, pause: Duration, count: &AtomicUsize) -> anyhow::Result<()> {
    let mut connection = BufReader::new(TcpStream::connect(address).await?);
    let mut clock = interval(pause);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        read(&mut connection).await?;
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// One reading.
pub(crate) async fn read(connection: &mut BufReader<TcpStream>) -> anyhow::Result<String> {
    const REQUEST: &[u8] =
        b"GET /metrics HTTP/1.1\r\nhost: driver\r\naccept: application/openmetrics-text\r\n\r\n";
    connection.get_mut().write_all(REQUEST).await?;
    let mut length = None;
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        anyhow::ensure!(connection.read_line(&mut line).await? > 0, "the connection was closed");
        if let Some(number) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = Some(number.trim().parse()?);
        }
    }
    let mut body = vec![0; length.context("no content-length")?];
    connection.read_exact(&mut body).await?;
    Ok(String::from_utf8(body)?)
}
