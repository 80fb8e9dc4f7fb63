//! Which sockets to open: what the file writes must be had, a default that is taken is skipped and said so.

use std::net::{SocketAddr, TcpListener};

use weft_edge::spec::ListenSpec;

/// A wish for one socket.
pub struct Wish {
    /// Where.
    pub address: SocketAddr,
    /// Whether the file or the command line says so.
    pub written: bool,
}

/// Why Weft cannot listen where it was told to.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Another process listens there.
    #[error(
        "{what} cannot listen on {address}: {reason}. Stop what listens there, change `{key}`, or shift all ports with --port-offset N"
    )]
    Taken {
        /// Which listener.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// The operating system's word.
        reason: std::io::Error,
        /// The key that names the port.
        key: &'static str,
    },
    /// Port plus offset is no port.
    #[error("port {port} shifted by {offset} is past 65535: use a smaller --port-offset")]
    Offset {
        /// Before.
        port: u16,
        /// By how much.
        offset: u16,
    },
}

/// Shifts a port; 0 stays 0 (a free one).
pub fn shift(address: SocketAddr, offset: u16) -> Result<SocketAddr, PortError> {
    if address.port() == 0 {
        return Ok(address);
    }
    let port = address.port().checked_add(offset).ok_or(PortError::Offset { port: address.port(), offset })?;
    Ok(SocketAddr::new(address.ip(), port))
}

/// The address to use, with port 0 replaced by a free one; `None` and a line to print when a default is taken.
///
/// The probe binds without `SO_REUSEPORT`, so that a second Weft of the same user is noticed.
pub fn settle(what: &'static str, key: &'static str, wish: &Wish) -> Result<Result<SocketAddr, String>, PortError> {
    match TcpListener::bind(wish.address).and_then(|l| l.local_addr()) {
        Ok(free) => Ok(Ok(free)),
        Err(reason) if wish.written => Err(PortError::Taken { what, address: wish.address, reason, key }),
        Err(reason) => Ok(Err(format!(
            "{what} is OFF: its default address {} is taken ({reason}); set `{key}` or use --port-offset N",
            wish.address
        ))),
    }
}

/// Settles all gateway listeners; those that are off are left out and explained.
pub fn settle_gateway(
    listen: &[ListenSpec],
    written: bool,
    notes: &mut Vec<String>,
) -> Result<Vec<ListenSpec>, PortError> {
    let mut settled = Vec::new();
    for one in listen {
        match settle("the gateway", "gateway.listen", &Wish { address: one.address, written })? {
            Ok(address) => settled.push(ListenSpec { address, ..one.clone() }),
            Err(note) => notes.push(note),
        }
    }
    Ok(settled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_default_is_skipped_and_a_taken_written_port_is_fatal() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let default = settle("the API", "api.listen", &Wish { address, written: false }).unwrap();
        assert!(default.unwrap_err().contains("--port-offset"));
        assert!(matches!(
            settle("the API", "api.listen", &Wish { address, written: true }),
            Err(PortError::Taken { .. })
        ));
    }

    #[test]
    fn port_zero_takes_a_free_one_and_is_not_shifted() {
        let zero: SocketAddr = "127.0.0.1:0".parse().unwrap();
        assert_eq!(shift(zero, 100).unwrap(), zero);
        let got = settle("the API", "api.listen", &Wish { address: zero, written: true }).unwrap().unwrap();
        assert_ne!(got.port(), 0);
        assert!(shift("127.0.0.1:65000".parse().unwrap(), 1000).is_err());
    }
}
