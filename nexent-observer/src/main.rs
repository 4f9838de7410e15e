//! temp
use nexent_observer::{probe::{kernel::*, attach::*}, ring::*};
fn main() {
    let (k, rings) = KernelHalf::load(KernelOptions{read_ring_bytes:8<<20,write_ring_bytes:8<<20,write_head_bytes:32<<10,write_tail_bytes:64<<10,report_all_execs:false}).unwrap();
    let mut a = Attacher::new(k, 8).unwrap();
    let mut d = Drain::new(rings);
    for p in std::env::args().skip(1) { match a.attach(p.parse().unwrap(), true, None) { Ok(r) => println!("{r:#?}"), Err(e) => println!("{e}") } }
    for _ in 0..200 {
        std::thread::sleep(std::time::Duration::from_millis(50));
        d.run(|e| match e { RingEvent::Record(r) => { let s = format!("{r:?}"); println!("{}", &s[..s.len().min(700)]) } , RingEvent::Process(p) => println!("{p:?}") });
    }
}
