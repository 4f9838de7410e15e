//! TLS to a receiver with a private CA, with and without a client certificate, over both protocols.

use std::{io::Write as _, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use super::*;

/// A CA, a server certificate for localhost and a client certificate, as PEM.
struct Pki {
    dir: PathBuf,
    ca: String,
    server: (String, String),
}

impl Pki {
    /// Makes it anew and puts what the observer needs into files of its own directory.
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let leaf = |host: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
            (params.signed_by(&key, &ca).unwrap().pem(), key.serialize_pem())
        };
        let dir = std::env::temp_dir().join(format!("nexent-observer-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let client = leaf("observer");
        for (file, text) in [("ca.pem", &ca.pem()), ("client.pem", &client.0), ("client.key", &client.1)] {
            std::fs::write(dir.join(file), text).unwrap();
        }
        Self { dir, ca: ca.pem(), server: leaf("localhost") }
    }

    /// Settings for `https://localhost:PORT`.
    fn config(&self, port: u16, protocol: &str, with_ca: bool, with_client: bool) -> OtlpConfig {
        let path = |file: &str| self.dir.join(file).to_str().unwrap().to_owned();
        let mut env = HashMap::from([
            ("OTEL_EXPORTER_OTLP_PROTOCOL".to_owned(), protocol.to_owned()),
            ("OTEL_BSP_SCHEDULE_DELAY".to_owned(), "10".to_owned()),
            ("OTEL_BSP_EXPORT_TIMEOUT".to_owned(), "600".to_owned()),
            ("OTEL_METRICS_EXPORTER".to_owned(), "none".to_owned()),
        ]);
        if with_ca {
            env.insert("OTEL_EXPORTER_OTLP_CERTIFICATE".to_owned(), path("ca.pem"));
        }
        if with_client {
            env.insert("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE".to_owned(), path("client.pem"));
            env.insert("OTEL_EXPORTER_OTLP_CLIENT_KEY".to_owned(), path("client.key"));
        }
        let mut config = load(&env, Some(&format!("https://localhost:{port}"))).config.unwrap();
        config.backoff_first = Duration::from_millis(50);
        config
    }

    fn server_config(&self) -> Arc<ServerConfig> {
        ensure_tls_provider();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap()).unwrap();
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        let chain = vec![CertificateDer::from_pem_slice(self.server.0.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(self.server.1.as_bytes()).unwrap();
        Arc::new(ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap())
    }
}

impl Drop for Pki {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

/// Takes one request per connection on a thread of its own, until the test process ends.
fn https(config: Arc<ServerConfig>) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), socket.unwrap());
            let mut got = Vec::new();
            let mut buffer = [0; 4096];
            while !complete(&got) {
                match stream.read(&mut buffer) {
                    Ok(n) if n > 0 => got.extend_from_slice(&buffer[..n]),
                    _ => break,
                }
            }
            if complete(&got) {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
                stream.flush().unwrap();
            }
        }
    });
    port
}

/// Whether head and body of a request are there.
fn complete(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
    let Some(end) = text.find("\r\n\r\n") else { return false };
    let length = text.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()).unwrap();
    bytes.len() >= end + 4 + length.parse::<usize>().unwrap()
}

/// Spans delivered and given up of one.
async fn outcome(config: &OtlpConfig) -> (u64, u64) {
    let (otlp, spans, _) = start(config);
    send(&otlp, 1);
    until("an outcome", || spans.exported.get() + spans.dropped_so_far(DropCause::Timeout) > 0).await;
    otlp.shutdown(SECOND).await;
    (spans.exported.get(), spans.dropped_so_far(DropCause::Timeout))
}

#[tokio::test]
async fn https_trusts_the_given_ca_only_and_shows_the_client_certificate() {
    let pki = Pki::new("http");
    let port = https(pki.server_config());
    assert_eq!(outcome(&pki.config(port, "http/protobuf", true, true)).await, (1, 0));
    assert_eq!(
        outcome(&pki.config(port, "http/protobuf", true, false)).await,
        (0, 1),
        "the receiver wants a certificate"
    );
    assert_eq!(outcome(&pki.config(port, "http/protobuf", false, true)).await, (0, 1), "nobody trusts this CA");
}

#[tokio::test]
async fn grpc_trusts_the_given_ca_only_and_shows_the_client_certificate() {
    let pki = Pki::new("grpc");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(&pki.server.0, &pki.server.1))
        .client_ca_root(Certificate::from_pem(&pki.ca));
    let got = Arc::<Got>::default();
    let traces = TraceServiceServer::new(GrpcReceiver(Arc::clone(&got)));
    let server = tonic::transport::Server::builder().tls_config(tls).unwrap().add_service(traces);
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let task = tokio::spawn(server.serve_with_incoming(incoming));
    assert_eq!(outcome(&pki.config(port, "grpc", true, true)).await, (1, 0));
    assert_eq!(outcome(&pki.config(port, "grpc", true, false)).await, (0, 1), "the receiver wants a certificate");
    assert_eq!(outcome(&pki.config(port, "grpc", false, true)).await, (0, 1), "nobody trusts this CA");
    assert_eq!(got.spans.load(Ordering::SeqCst), 1);
    task.abort();
}
