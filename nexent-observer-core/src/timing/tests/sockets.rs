//! What the socket of a connection told, on virtual time.

use super::*;

#[test]
fn a_request_is_sent_when_the_socket_has_all_of_it() {
    let mut p = Play::stream();
    p.timing.sent(MonoNs(1001 * MS), MonoNs(1050 * MS));
    assert_eq!(p.timing.clone().finish(&mut p.stats).request_sent, None, "that was an earlier write");
    p.timing.sent(MonoNs(1002 * MS), MonoNs(1060 * MS));
    p.timing.sent(MonoNs(1300 * MS), MonoNs(1300 * MS));
    assert_eq!(p.tokens(&[1200]).done(1260).request_sent, Some(ms(1060)), "the first word of it counts");
}

#[test]
fn each_stall_has_its_cause_where_the_socket_was_watched() {
    let mut p = Play::stream();
    p.timing.watched(ms(1003));
    p.tokens(&[1200, 1220, 1240]);
    p.timing.late(ms(1300), ms(5239));
    p.token(5240).token(5260);
    p.timing.retransmitted(Some(1));
    p.token(9000);
    let x = p.done(9010);
    assert_eq!(x.stalls, [(ms(1240), ms(5240)), (ms(5260), ms(9000))]);
    assert_eq!(x.stall_causes, [Some(Cause::LateRead), Some(Cause::LateArrival)]);
    assert_eq!(x.first_token_cause, Some(Cause::LateArrival));
    assert_eq!(x.read_delay, Some(ReadDelay { reads: 1, max_ns: 3939 * MS, total_ns: 3939 * MS }));
    assert_eq!(x.retransmits, Some(1));
}

#[test]
fn a_gap_that_began_before_the_socket_was_watched_has_no_cause() {
    let mut p = Play::stream();
    p.tokens(&[1180, 1200, 1220]);
    p.timing.watched(ms(2000));
    p.timing.late(ms(2500), ms(5239));
    p.token(5240).token(5260).token(9000);
    let x = p.done(9010);
    assert_eq!(x.stall_causes, [None, Some(Cause::LateArrival)]);
    assert_eq!(x.first_token_cause, None);
}

#[test]
fn a_first_token_that_lay_unread_is_a_late_read() {
    let mut p = Play::fresh(&Options::default(), &Limits::default());
    p.timing.watched(ms(999));
    p.start(1000);
    p.say(1002, LlmEventKind::RequestEnd);
    p.timing.late(ms(1100), ms(1499));
    p.response(1500, 200, true);
    assert_eq!(p.token(1502).done(1600).first_token_cause, Some(Cause::LateRead));
}
