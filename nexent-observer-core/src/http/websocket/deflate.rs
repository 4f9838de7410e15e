//! `permessage-deflate` (RFC 7692): one direction's decoder.

use flate2::{Decompress, FlushDecompress, Status};

use crate::{http::Headers, limits};

/// What every compressed message ends with and does not carry (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// Decoder of the compressed messages of one direction.
#[derive(Debug)]
pub(super) struct Deflate {
    /// Made when the first compressed message comes.
    inflate: Option<Box<Decompress>>,
    /// A message may refer to those before it.
    takeover: bool,
    /// What it may refer to is not known any more.
    lost: bool,
    fed: u64,
    given: u64,
}

/// Why a message cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad {
    /// It is no deflate.
    Invalid,
    /// It becomes too large for what it is.
    TooLong,
}

impl Deflate {
    /// Decoders of the client's and of the server's messages, if the response says that the extension is in force.
    pub(super) fn negotiated(headers: &Headers<'_>) -> Option<(Self, Self)> {
        let values = headers.0.iter().filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-extensions"));
        let mut extensions = values.filter_map(|(_, value)| std::str::from_utf8(value).ok()).flat_map(|v| v.split(','));
        let parameters = extensions.find_map(|extension| {
            let mut parts = extension.split(';').map(str::trim);
            parts.next().is_some_and(|name| name.eq_ignore_ascii_case("permessage-deflate")).then_some(parts)
        })?;
        let (mut client, mut server) = (true, true);
        for parameter in parameters {
            client &= !parameter.eq_ignore_ascii_case("client_no_context_takeover");
            server &= !parameter.eq_ignore_ascii_case("server_no_context_takeover");
        }
        Some((Self::new(client), Self::new(server)))
    }

    fn new(takeover: bool) -> Self {
        Self { inflate: None, takeover, lost: false, fed: 0, given: 0 }
    }

    /// A compressed message begins. `false`: it cannot be decoded, for it may refer to what is not known.
    pub(super) fn begin(&mut self) -> bool {
        if !self.takeover {
            self.lost = false;
            if let Some(inflate) = &mut self.inflate {
                inflate.reset(false);
            }
        }
        (self.fed, self.given) = (0, 0);
        !self.lost
    }

    /// A message, or a part of one, will not be decoded: later ones may refer to it.
    pub(super) fn lose(&mut self) {
        self.lost = true;
        self.inflate = None;
    }

    /// Decodes a part of a message and hands out what it gives.
    pub(super) fn feed(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<(), Bad> {
        self.fed = self.fed.saturating_add(bytes.len() as u64);
        let most = self.fed.saturating_mul(limits::DECODED_RATIO).saturating_add(limits::DECODED_FREE_BYTES);
        self.run(bytes, most.min(limits::DECODED_BYTES), sink)
    }

    /// The message is complete.
    pub(super) fn end(&mut self, sink: &mut dyn FnMut(&[u8])) -> Result<(), Bad> {
        self.feed(&TAIL, sink)
    }

    fn run(&mut self, mut bytes: &[u8], most: u64, sink: &mut dyn FnMut(&[u8])) -> Result<(), Bad> {
        let inflate = self.inflate.get_or_insert_with(|| Box::new(Decompress::new(false)));
        let mut out = [0; 4096];
        loop {
            let (read, written) = (inflate.total_in(), inflate.total_out());
            let status = inflate.decompress(bytes, &mut out, FlushDecompress::None).map_err(|_| Bad::Invalid)?;
            let (read, written) = ((inflate.total_in() - read) as usize, (inflate.total_out() - written) as usize);
            bytes = bytes.get(read..).unwrap_or_default();
            self.given = self.given.saturating_add(written as u64);
            if self.given > most {
                return Err(Bad::TooLong);
            }
            if written > 0 {
                sink(out.get(..written).unwrap_or_default());
            }
            if status == Status::StreamEnd {
                // A last block inside of a message is allowed (RFC 7692 section 7.2.3.4).
                inflate.reset(false);
            } else if read == 0 && written == 0 && !bytes.is_empty() {
                return Err(Bad::Invalid);
            }
            if bytes.is_empty() && written < out.len() {
                return Ok(());
            }
        }
    }
}
