//! Functions without symbols in real files: found where the symbols say, at the addresses that were seen to fire, or not at all. Files that
//! are damaged or made to mislead give the same answer or none. Nothing is attached: no root is needed, but the registries are.
#![expect(clippy::unwrap_used, reason = "a test that cannot start fails")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use nexent_observer::probe::{
    cache::Cache,
    library::plan_of_path,
    plan::{Family, FamilyPlan, Hook, Plan, Program},
};
use xtask::{python, runtime, rust, sh};

/// Where the packages are. Installed once: these tests run side by side.
fn packages() -> &'static Path {
    static PACKAGES: OnceLock<PathBuf> = OnceLock::new();
    PACKAGES.get_or_init(|| python::finders().unwrap())
}

fn scratch(name: &str) -> PathBuf {
    let dir = sh::target_dir(&sh::root().unwrap()).join("finders");
    fs::create_dir_all(&dir).unwrap();
    dir.join(name)
}

fn plan(path: &Path) -> Plan {
    plan_of_path(path, None).unwrap().unwrap_or_default()
}

fn of(plan: &Plan, family: Family) -> &FamilyPlan {
    let found = plan.implementations.iter().find(|found| found.family == family);
    found.unwrap_or_else(|| panic!("{family} is not found: {plan:?}"))
}

/// A copy without symbols.
fn stripped(path: &Path, name: &str) -> PathBuf {
    let to = scratch(name);
    sh::run(Command::new("strip").arg("-o").arg(&to).arg(path)).unwrap();
    to
}

/// Where the hooks of a plan are, by what runs there and how it tells the length.
fn places(plan: &FamilyPlan) -> BTreeMap<String, u64> {
    plan.hooks.iter().map(|hook| (format!("{:?} {:?}", hook.program, hook.length), hook.offset)).collect()
}

fn without(places: &BTreeMap<String, u64>, programs: &[Program]) -> BTreeMap<String, u64> {
    let is_out = |name: &str| programs.iter().any(|program| name.starts_with(&format!("{program:?} ")));
    places.iter().filter(|(name, _)| !is_out(name)).map(|(name, at)| (name.clone(), *at)).collect()
}

#[test]
fn boringssl_is_found_where_its_symbols_are() {
    let wheel = packages().join("curl_cffi/_wrapper.abi3.so");
    let truth = places(of(&plan(&wheel), Family::OpenSsl));
    let found = plan(&stripped(&wheel, "curl_cffi.so"));
    assert_eq!(places(of(&found, Family::BoringSsl)), without(&truth, &[Program::Free, Program::Clear]));
    assert_eq!(found.implementations.len(), 1);
}

#[test]
fn stripped_openssl_3_0_is_found_where_the_public_functions_lead() {
    let program = runtime::static_openssl().unwrap();
    let truth = plan(&runtime::static_openssl_with_symbols().unwrap());
    let found = plan(&program);
    let wanted = without(&places(of(&truth, Family::OpenSsl)), &[Program::Free]);
    let same = |hook: &Hook| wanted.values().any(|at| *at == hook.offset);
    let found = of(&found, Family::StaticOpenSsl);
    assert_eq!(found.hooks.len(), 4, "{found:?}");
    assert!(found.hooks.iter().all(same), "{found:#?}\n{truth:#?}");
}

#[test]
fn openssl_4_without_symbols_is_found_where_its_symbols_are() {
    let library = packages().join("cryptography/hazmat/bindings/_rust.abi3.so");
    let found = plan(&stripped(&library, "cryptography.so"));
    let symbols = Command::new("readelf").args(["-sW"]).arg(&library).output().unwrap();
    let symbols = String::from_utf8_lossy(&symbols.stdout).into_owned();
    let address = |name: &str| {
        let line = symbols.lines().find(|line| line.ends_with(&format!(" {name}"))).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().trim_start_matches('0').to_owned()
    };
    let found = of(&found, Family::StaticOpenSsl);
    for (program, name, length) in [
        (Program::Read, "ssl_read_internal", "FourthArgument"),
        (Program::Write, "ssl_write_internal", "FifthArgument"),
        (Program::New, "SSL_new", "Returned"),
        (Program::Clear, "SSL_clear", "Returned"),
    ] {
        let hook =
            found.hooks.iter().find(|hook| hook.program == program).unwrap_or_else(|| panic!("{name}: {found:?}"));
        assert_eq!(hook.function, format!("{name} at 0x{}", address(name)));
        assert_eq!(format!("{:?}", hook.length), length, "{name}");
    }
}

#[test]
fn the_inner_functions_of_openssl_3_6_are_found_behind_the_public_ones() {
    let libraries = fs::read_dir(packages().join("pycurl.libs")).unwrap().flatten().map(|entry| entry.path());
    let is_it = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("libssl");
    let library = libraries.into_iter().find(is_it).unwrap();
    let symbols = Command::new("readelf").args(["-sW"]).arg(&library).output().unwrap();
    let symbols = String::from_utf8_lossy(&symbols.stdout).into_owned();
    let found = plan(&library);
    let found = of(&found, Family::OpenSsl);
    assert_eq!(found.notes, Vec::<String>::new());
    for (program, public, inner, length) in [
        (Program::Read, "SSL_read", "ssl_read_internal", "FourthArgument"),
        (Program::Write, "SSL_write", "ssl_write_internal", "FifthArgument"),
    ] {
        let hooks: Vec<&Hook> = found.hooks.iter().filter(|hook| hook.program == program).collect();
        assert_eq!(hooks.len(), 1, "{hooks:?}");
        let line = symbols.lines().find(|line| line.ends_with(&format!(" {inner}"))).unwrap();
        let address = line.split_ascii_whitespace().nth(1).unwrap().trim_start_matches('0').to_owned();
        assert_eq!(hooks[0].function, format!("{public} -> inner function at 0x{address}"));
        assert_eq!(format!("{:?}", hooks[0].length), length, "{inner}");
    }
}

/// Addresses that were seen to fire in these very versions, each by a probe that was set by hand.
#[test]
fn boringssl_is_found_where_it_was_seen_to_fire() {
    let grpc = packages().join("grpc/_cython");
    let grpc = fs::read_dir(grpc).unwrap().flatten().map(|entry| entry.path());
    let grpc = grpc.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "so")).unwrap();
    for (path, read, write) in [(runtime::bun().unwrap(), 0x258_6500, 0x260_7c30), (grpc, 0xbb_5380, 0xbb_35a0)] {
        let found = plan(&path);
        let found = of(&found, Family::BoringSsl);
        let at = |program| &found.hooks.iter().find(|hook| hook.program == program).unwrap().function;
        assert_eq!(*at(Program::Read), format!("SSL_read at {read:#x}"), "{}", path.display());
        assert_eq!(*at(Program::Write), format!("SSL_write at {write:#x}"), "{}", path.display());
    }
}

/// A generator of numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 16) % end as u64).unwrap()
    }
}

/// Looks into a damaged file, and fails when it gives a hook at a place where there is none in the whole one.
fn same_or_nothing(bytes: &[u8], name: &str, truth: &FamilyPlan, what: &str) -> bool {
    let path = scratch(name);
    fs::write(&path, bytes).unwrap();
    let found = plan(&path);
    for hook in found.implementations.iter().flat_map(|found| &found.hooks) {
        let same = truth.hooks.iter().any(|true_one| {
            (true_one.program, true_one.length) == (hook.program, hook.length) && true_one.offset == hook.offset
        });
        assert!(same, "{what}: {hook:?} is none of {:?}", truth.hooks);
    }
    found.implementations.iter().any(|found| found.family == truth.family)
}

#[test]
fn a_damaged_file_gives_the_same_places_or_none() {
    let program = runtime::static_openssl().unwrap();
    let good = fs::read(&program).unwrap();
    let truth = of(&plan(&program), Family::StaticOpenSsl).clone();
    let mut numbers = Numbers(1);
    let mut regions: Vec<(usize, usize)> = vec![(0, 1024), (good.len() - 4096, good.len())];
    regions.extend(truth.proof.iter().map(|part| {
        let at = usize::try_from(part.offset).unwrap();
        (at, at + usize::try_from(part.len).unwrap())
    }));
    let mut refused = 0;
    const FLIPS: usize = 240;
    for no in 0..FLIPS {
        let (from, to) = regions[no % regions.len()];
        let (at, bit) = (from + numbers.below(to - from), numbers.below(8));
        let mut bytes = good.clone();
        bytes[at] ^= 1 << bit;
        refused += usize::from(!same_or_nothing(&bytes, "flipped", &truth, &format!("byte {at:#x}, bit {bit}")));
    }
    // Most of these bytes are needed for the proof: a test that damages nothing that matters shows nothing.
    assert!(refused > FLIPS / 20, "{refused} of {FLIPS} were refused");
    for no in 1..24 {
        let cut = good.len() * no / 24;
        same_or_nothing(&good[..cut], "cut", &truth, &format!("cut at {cut}"));
    }
}

#[test]
fn two_functions_that_could_be_it_are_none() {
    // The name of a function in another function's errors: what refers to it is not one but two.
    let program = runtime::static_openssl().unwrap();
    let truth = of(&plan(&program), Family::StaticOpenSsl).clone();
    let mut bytes = fs::read(&program).unwrap();
    let (read, write) = (b"\0ssl_read_internal\0".as_slice(), b"\0ssl_write_internal\0".as_slice());
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|window| window == what).unwrap();
    let at = find(&bytes, write);
    bytes[at..at + read.len()].copy_from_slice(read);
    assert!(!same_or_nothing(&bytes, "two-names", &truth, "one name for two functions"));
    // No name at all.
    let mut bytes = fs::read(&program).unwrap();
    let at = find(&bytes, read);
    bytes[at + 1] = b'x';
    assert!(!same_or_nothing(&bytes, "no-name", &truth, "another name"));
}

#[test]
fn other_files_have_none() {
    for path in ["/bin/sh", "/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/x86_64-linux-gnu/libcrypto.so.3"] {
        let found = plan(Path::new(path));
        assert_eq!((found.implementations, found.refused), (vec![], vec![]), "{path}");
    }
}

/// A fresh cache.
fn cache(name: &str) -> (Cache, PathBuf) {
    let directory = scratch(name);
    drop(fs::remove_dir_all(&directory));
    (Cache::open(&directory).unwrap(), directory)
}

fn kept(path: &Path, cache: &Cache) -> Plan {
    plan_of_path(path, Some(cache)).unwrap().unwrap_or_default()
}

/// The program, in which no function calls the one that reads any more: searched anew, it is not proven.
fn without_callers(truth: &FamilyPlan, bytes: &[u8]) -> Vec<u8> {
    let read = truth.hooks.iter().find(|hook| hook.program == Program::Read).unwrap();
    let mut bytes = bytes.to_vec();
    for at in 0..bytes.len() - 5 {
        let distance = i32::from_le_bytes(bytes[at + 1..at + 5].try_into().unwrap());
        // In this program code lies at the same addresses as in the file.
        if bytes[at] == 0xe8 && (at as u64 + 5).wrapping_add_signed(distance.into()) == read.offset {
            bytes[at + 1..at + 5].fill(0);
        }
    }
    bytes
}

#[test]
fn a_finding_on_disk_is_used_while_its_proof_holds() {
    let program = runtime::static_openssl().unwrap();
    let (cache, directory) = cache("cache-used");
    let truth = kept(&program, &cache);
    assert_eq!(truth, plan(&program));
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    let bytes = without_callers(of(&truth, Family::StaticOpenSsl), &fs::read(&program).unwrap());
    let other = scratch("without-callers");
    fs::write(&other, bytes).unwrap();
    assert_eq!(plan(&other).implementations, vec![], "searched anew it is not proven");
    assert_eq!(kept(&other, &cache), truth, "of the same build, and every byte of the proof is there");
}

#[test]
fn a_finding_of_aws_lc_without_symbols_is_used_too() {
    let program = rust::program("uv").unwrap();
    let (cache, directory) = cache("cache-aws-lc");
    let truth = kept(&program, &cache);
    let found = of(&truth, Family::Rustls);
    assert!(found.hooks.iter().all(|hook| found.proof.iter().any(|part| part.is_hooked_at(hook.offset))), "{found:?}");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    // The table for unwinding is of another kind: searched anew, no function has a beginning.
    let mut bytes = fs::read(&program).unwrap();
    let tables: Vec<usize> = (0..bytes.len() - 4).filter(|at| bytes[*at..].starts_with(&[1, 0x1b, 3, 0x3b])).collect();
    tables.into_iter().for_each(|at| bytes[at] = 2);
    let other = scratch("uv-without-table");
    fs::write(&other, bytes).unwrap();
    assert_eq!(plan(&other).implementations, vec![], "searched anew it is not proven");
    assert_eq!(kept(&other, &cache).implementations, truth.implementations, "every byte of the proof is there");
}

#[test]
fn a_finding_on_disk_is_not_used_for_a_file_that_differs_where_it_matters() {
    let program = runtime::static_openssl().unwrap();
    let (cache, _) = cache("cache-differs");
    let truth = kept(&program, &cache);
    let truth = of(&truth, Family::StaticOpenSsl);
    let good = without_callers(truth, &fs::read(&program).unwrap());
    let other = scratch("differs");
    let mut numbers = Numbers(2);
    for no in 0..120 {
        let part = truth.proof[no % truth.proof.len()];
        let at = usize::try_from(part.offset).unwrap() + numbers.below(usize::try_from(part.len).unwrap());
        let mut bytes = good.clone();
        bytes[at] ^= 1 << numbers.below(8);
        fs::write(&other, &bytes).unwrap();
        assert_eq!(kept(&other, &cache).implementations, vec![], "byte {at:#x}");
    }
    let mut longer = good;
    longer.push(0);
    fs::write(&other, &longer).unwrap();
    assert_eq!(kept(&other, &cache).implementations, vec![], "of another size");
}

#[test]
fn a_damaged_or_foreign_entry_is_passed_over() {
    let program = runtime::static_openssl().unwrap();
    let (cache, directory) = cache("cache-damaged");
    let truth = kept(&program, &cache);
    let entry = fs::read_dir(&directory).unwrap().next().unwrap().unwrap().path();
    let good = fs::read(&entry).unwrap();
    let mut numbers = Numbers(3);
    for no in 0..60 {
        let mut bytes = good.clone();
        match no {
            0 => bytes.clear(),
            1 => bytes.truncate(good.len() / 2),
            2 => bytes = b"{}".to_vec(),
            _ => bytes[numbers.below(good.len())] ^= 1 << numbers.below(8),
        }
        fs::write(&entry, &bytes).unwrap();
        assert_eq!(kept(&program, &cache), truth);
        assert_eq!(fs::read(&entry).unwrap(), good, "it is written anew");
    }
    fs::remove_file(&entry).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &entry).unwrap();
    assert_eq!(kept(&program, &cache), truth, "a link is not followed");
}

#[test]
fn a_directory_that_others_can_use_is_none() {
    let (_, directory) = cache("cache-open");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(Cache::open(&directory).unwrap_err().to_string().contains("mode 0700"));
    let file = scratch("cache-file");
    fs::write(&file, "").unwrap();
    assert!(Cache::open(&file).is_err());
}
