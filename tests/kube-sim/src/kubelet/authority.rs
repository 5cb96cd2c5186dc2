//! The `:authority` that the kubelet sends on a registration socket.
//!
//! The kubelet dials with the bare path and sets no authority; grpc-go (clientconn.go, `encodeAuthority`) then sends the path,
//! percent-encoded. The `http` crate, and so every hyper or tonic server, refuses `%` in a host but allows it before an `@`.

/// The path as grpc-go encodes it: everything but unreserved characters, sub-delimiters and `:[]@` is escaped.
#[must_use]
pub fn encode_authority(path: &str) -> String {
    let mut encoded = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]@".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_path_is_escaped_as_grpc_go_does_it() {
        let path = "/var/lib/kubelet/plugins_registry/mig.dra-driver.dev@reg.sock";
        let expected = "%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fmig.dra-driver.dev@reg.sock";
        assert_eq!(encode_authority(path), expected);
        assert_eq!(encode_authority("a b%ü"), "a%20b%25%C3%BC");
    }
}
