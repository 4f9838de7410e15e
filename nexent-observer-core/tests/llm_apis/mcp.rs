//! Calls of the Model Context Protocol over streamable HTTP: recognised, and not taken for calls of a model.

use nexent_observer_core::{
    http::{HttpEventKind, Side},
    llm::{NotLlm, Verdict},
};

use super::llm_support::{Bench, Fields, SSE};

const ACCEPT: (&str, &[u8]) = ("accept", b"application/json, text/event-stream");
const CALL: &[u8] = br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"chat","arguments":{"model":"m","messages":[]}}}"#;

#[test]
fn a_call_of_a_tool_is_known_by_its_request() {
    let by_field: [Fields<'_>; 3] = [
        &[ACCEPT, ("mcp-protocol-version", b"2025-06-18")],
        &[("Mcp-Session-Id", b"s")],
        &[("mcp-method", b"tools/call"), ("mcp-name", b"x")],
    ];
    for headers in by_field {
        let mut bench = Bench::default();
        bench.request_head("POST", "/mcp", "tools.example", headers);
        assert_eq!((bench.exchange.verdict(), bench.seen.not_llm), (Verdict::NotLlm, Some(NotLlm::Mcp)));
    }
    // The first request of a session has no field of its own.
    let mut bench = Bench::default();
    bench.request_head("POST", "/", "tools.example", &[ACCEPT]);
    for byte in CALL.chunks(1) {
        bench.feed(Side::Request, HttpEventKind::Body(byte));
    }
    assert_eq!(bench.seen.not_llm, Some(NotLlm::Mcp));
}

#[test]
fn an_answer_that_looks_like_a_model_is_still_a_tools() {
    let mut bench = Bench::default();
    bench.ask("/mcp", "tools.example", &[ACCEPT], CALL);
    bench.response_head(200, SSE);
    bench.body(
        b"event: message\r\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\r\n\r\n",
    );
    bench.end();
    assert_eq!(bench.seen.log(), "NotLlm");
}

#[test]
fn other_requests_say_why_they_are_none() {
    let mut bench = Bench::default();
    bench.request_head("GET", "/mcp", "h", &[]);
    assert_eq!(bench.seen.not_llm, Some(NotLlm::Request));
    let mut bench = Bench::default();
    bench.ask("/rpc", "node.example", &[], br#"{"jsonrpc":"2.0","method":"eth_call","id":1}"#);
    assert_eq!(bench.seen.not_llm, None, "JSON-RPC alone is not the protocol");
    bench.response_head(200, &[("content-type", b"application/json")]);
    bench.body(b"{\"jsonrpc\":\"2.0\",\"result\":1,\"id\":1}");
    bench.end();
    assert_eq!(bench.seen.not_llm, Some(NotLlm::Answer));
}
