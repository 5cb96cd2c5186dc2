//! Addresses that are served.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;
use tokio::net::TcpListener;

/// Listens at an address. `[::]` takes connections over IPv6 and IPv4; where the kernel has no IPv6 (`ipv6.disable=1`), 0.0.0.0
/// takes its place.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    bind_with(address, TcpListener::bind).await
}

async fn bind_with<T, F>(address: SocketAddr, open: impl Fn(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    match open(address).await {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && is_without_ipv6(&error) => {
            open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()))).await
        }
        bound => bound,
    }
}

/// What the kernel answers where IPv6 is off: no such kind of socket, or, where it is off for the interfaces only, no such address.
fn is_without_ipv6(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].into_iter().any(|it| number == Some(it.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    /// Binds on a kernel that answers IPv6 sockets with this, and takes what is over IPv4.
    async fn bound(address: &str, answer: Errno) -> io::Result<SocketAddr> {
        let open = |it: SocketAddr| ready(if it.is_ipv6() { Err(answer.into()) } else { Ok(it) });
        bind_with(address.parse().unwrap(), open).await
    }

    #[tokio::test]
    async fn without_ipv6_every_ipv4_address_takes_the_place_of_every_address() {
        for answer in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            assert_eq!(bound("[::]:8081", answer).await.unwrap(), "0.0.0.0:8081".parse().unwrap());
            bound("[::1]:8081", answer).await.unwrap_err();
        }
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error() {
        assert_eq!(bound("[::]:8081", Errno::ADDRINUSE).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
