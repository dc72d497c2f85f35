use proptest::prelude::*;

use super::*;

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn key(out: &mut Vec<u8>, name: &str, kind: u32, value: &[u8]) {
    string(out, name);
    out.extend(kind.to_le_bytes());
    out.extend(value);
}

/// A small file with every kind of value and two tensors.
fn small_file() -> Vec<u8> {
    let mut f = b"GGUF".to_vec();
    f.extend(3u32.to_le_bytes());
    f.extend(2u64.to_le_bytes());
    f.extend(9u64.to_le_bytes());
    key(&mut f, "a.u8", 0, &[7]);
    key(&mut f, "a.i32", 5, &(-3i32).to_le_bytes());
    key(&mut f, "a.f32", 6, &1e-5f32.to_le_bytes());
    key(&mut f, "a.bool", 7, &[1]);
    key(&mut f, "a.u64", 10, &(1u64 << 40).to_le_bytes());
    key(&mut f, "a.f64", 12, &0.1f64.to_le_bytes());
    let mut text = Vec::new();
    string(&mut text, "llama");
    key(&mut f, "general.architecture", 8, &text);
    let mut words = Vec::new();
    words.extend(8u32.to_le_bytes());
    words.extend(2u64.to_le_bytes());
    string(&mut words, "ab");
    string(&mut words, "");
    key(&mut f, "words", 9, &words);
    let mut ids = Vec::new();
    ids.extend(5u32.to_le_bytes());
    ids.extend(2u64.to_le_bytes());
    ids.extend(1i32.to_le_bytes());
    ids.extend((-1i32).to_le_bytes());
    key(&mut f, "ids", 9, &ids);
    for (name, dims, kind, offset) in [("x", vec![3u64, 2], 0u32, 0u64), ("y", vec![32], 8, 32)] {
        string(&mut f, name);
        f.extend((dims.len() as u32).to_le_bytes());
        for d in dims {
            f.extend(d.to_le_bytes());
        }
        f.extend(kind.to_le_bytes());
        f.extend(offset.to_le_bytes());
    }
    f.resize(f.len().next_multiple_of(32), 0);
    for i in 0..6 {
        f.extend((i as f32).to_le_bytes());
    }
    f.resize(f.len().next_multiple_of(32), 0);
    f.extend([1u8; 34]);
    f
}

fn open(bytes: &[u8]) -> Result<Directory, GgufError> {
    parse(Path::new("small.gguf"), bytes)
}

fn message(bytes: &[u8]) -> String {
    match open(bytes) {
        Ok(_) => panic!("the file was accepted"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn values_and_directory_are_read() {
    let dir = tempfile_dir();
    let path = dir.join("small.gguf");
    crate::files::write_atomic(&path, &small_file()).expect("writable");
    let file = GgufFile::open(&path).expect("valid");
    assert_eq!(file.get_str("general.architecture").expect("type"), Some("llama"));
    assert_eq!(file.get_u64("a.u8").expect("type"), Some(7));
    assert_eq!(file.get_u64("a.u64").expect("type"), Some(1 << 40));
    assert_eq!(file.get_f64("a.f32").expect("type"), Some(1e-5));
    assert_eq!(file.get_f64("a.f64").expect("type"), Some(0.1));
    assert_eq!(file.get_bool("a.bool").expect("type"), Some(true));
    assert_eq!(file.get_i32_array("ids").expect("type"), Some(vec![1, -1]));
    assert_eq!(file.get_str_array("words").expect("type").map(<[String]>::len), Some(2));
    assert_eq!(file.get_u64("absent").expect("type"), None);
    assert_eq!(
        file.get_u64("a.i32").expect_err("negative").to_string(),
        format!("`{}`: metadata key `a.i32` holds a signed integer, expected a non-negative integer", path.display())
    );
    assert_eq!(file.tensors[0].shape, [2, 3]);
    assert_eq!(file.tensors[1].kind, GgmlType::Q8_0);
    assert_eq!(file.bytes(&file.tensors[0])[4..8], 1f32.to_le_bytes());
    assert_eq!(file.bytes(&file.tensors[1]), [1u8; 34]);
    crate::files::remove_dir_all(&dir).expect("removable");
}

fn tempfile_dir() -> PathBuf {
    let dir = std::env::temp_dir().join(format!("didact-gguf-{}", std::process::id()));
    crate::files::create_dir_all(&dir).expect("temporary directory");
    dir
}

#[test]
fn every_truncation_is_an_error() {
    let file = small_file();
    for len in 0..file.len() {
        assert!(open(&file[..len]).is_err(), "a file cut at byte {len} was accepted");
    }
    assert!(open(&file).is_ok());
}

#[test]
fn messages_name_file_place_and_cause() {
    assert_eq!(
        message(b"PK\x03\x04"),
        "`small.gguf` is not a GGUF file: it starts with \"PK\\u{3}\\u{4}\", expected \"GGUF\""
    );
    let mut f = small_file();
    f[4] = 1;
    assert_eq!(message(&f), "`small.gguf`: GGUF version 1 cannot be read, versions 2 and 3 (little-endian) can");
    let mut f = small_file();
    f[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let shown = message(&f);
    assert!(shown.starts_with("`small.gguf`: number of tensors (18446744073709551615) at byte 16 needs"), "{shown}");
    let mut f = small_file();
    let at = f.windows(1).rposition(|w| w == b"y").expect("tensor y");
    f[at + 1 + 4 + 8..][..4].copy_from_slice(&10u32.to_le_bytes());
    assert!(message(&f).starts_with("`small.gguf`: tensor `y` is stored as Q2_K, which cannot be read; readable: F32"));
    let f = small_file();
    assert!(message(&f[..f.len() - 1]).contains("data of tensor `y`"));
}

#[test]
fn repeated_names_are_refused() {
    let mut f = small_file();
    let at = f.windows(5).position(|w| w == b"a.f32").expect("key");
    f[at..at + 5].copy_from_slice(b"a.i32");
    // The value's type differs, which does not matter: the name is what is refused.
    assert!(message(&f).contains("`a.i32` for the second time"));
}

proptest! {
    #[test]
    fn flipped_bits_never_panic(flips in prop::collection::vec((0usize..4096, 0u8..8), 1..6)) {
        let mut file = small_file();
        let len = file.len();
        for (at, bit) in flips {
            file[at % len] ^= 1 << bit;
        }
        if let Ok(dir) = open(&file) {
            for t in dir.tensors {
                prop_assert!(t.offset + t.bytes <= file.len());
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut file = b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
        file.extend(body);
        let _ = open(&file);
    }
}
