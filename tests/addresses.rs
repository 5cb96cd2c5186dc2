//! Health, metrics and the API server over IPv6 and IPv4.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::common;
use clap::CommandFactory;
use common::{ControlPlane, Lab, free_address, get, is_complete};
use dra_driver_mig::args::Cli;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

/// Whether this machine has IPv6.
fn has_ipv6() -> bool {
    std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// The default of a flag of `node`.
fn default(flag: &str) -> SocketAddr {
    let command = Cli::command();
    let node = command.find_subcommand("node").unwrap();
    let argument = node.get_arguments().find(|it| it.get_long() == Some(flag)).unwrap();
    argument.get_default_values()[0].to_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_are_served_over_ipv4_and_ipv6_by_default() {
    let on = |flag: &str| SocketAddr::new(default(flag).ip(), free_address().port());
    let (health, metrics) = (on("http-address"), on("metrics-address"));
    let plane = ControlPlane::simulated(true).await;
    let lab = Lab::new(plane, "1xH100-80GB").await;
    let mut lab = lab.with_args(&["--http-address", &health.to_string()]).with_metrics_at(metrics);
    lab.start();
    lab.slices_when(is_complete).await;
    let mut clients = vec![Ipv4Addr::LOCALHOST.into()];
    match has_ipv6() {
        true => clients.push(Ipv6Addr::LOCALHOST.into()),
        false => eprintln!("no IPv6 here: asked over IPv4 only"),
    }
    for client in clients {
        for (address, path) in [(health, "/healthz"), (metrics, "/metrics")] {
            let answer = get(SocketAddr::new(client, address.port()), path).await.unwrap_or_default();
            assert!(answer.starts_with("HTTP/1.1 200"), "{path} over {client}: {answer}");
        }
    }
    lab.stop().await;
}

/// Takes connections over IPv6 for a server on IPv4.
async fn over_ipv6(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_at_an_ipv6_address_is_reached() {
    if !has_ipv6() {
        return eprintln!("skipped: no IPv6 here");
    }
    let plane = ControlPlane::simulated(true).await;
    let ControlPlane::Simulated(server) = plane.clone() else { unreachable!("it is the simulated one") };
    let mut lab = Lab::new(plane, "1xH100-80GB").await;
    let before = server.url();
    let address = over_ipv6(before.trim_start_matches("http://").parse().unwrap()).await;
    let kubeconfig = std::fs::read_to_string(lab.path("kubeconfig")).unwrap();
    assert!(kubeconfig.contains(&before));
    std::fs::write(lab.path("kubeconfig"), kubeconfig.replace(&before, &format!("http://{address}")))
        .unwrap();
    lab.start();
    lab.slices_when(is_complete).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_ends_the_driver_with_the_flag_to_change() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let lab = Lab::new(ControlPlane::simulated(true).await, "1xL4").await;
    let lab = lab.with_args(&["--http-address", &taken.local_addr().unwrap().to_string()]);
    let run = dra_driver_mig::node::run(lab.args(), tokio_util::sync::CancellationToken::new());
    assert!(run.await.unwrap_err().to_string().contains("choose another --http-address"));
}
