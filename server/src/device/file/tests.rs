//! The file device on real files, over both engines.

use std::sync::mpsc;

use super::*;

const LEAST: u64 = 1 << 20;

fn options(size: u64) -> CreateOptions {
    CreateOptions {
        size: Some(size),
        least: LEAST,
        force: false,
    }
}

fn wait<T: Send + 'static>(start: impl FnOnce(Done<T>)) -> io::Result<T> {
    let (send, receive) = mpsc::channel();
    start(Box::new(move |result| send.send(result).unwrap()));
    receive.recv().unwrap()
}

#[test]
fn a_directory_gets_a_sparse_file_and_keeps_what_is_written() {
    let engine = Engine::new();
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("brick");
    let device = FileDevice::create(&dir, &options(8 << 20), &engine).unwrap();
    assert_eq!(device.len(), 8 << 20);
    let meta = std::fs::metadata(dir.join(BRICK_FILE)).unwrap();
    assert_eq!((meta.len(), meta.blocks()), (8 << 20, 0));

    let parts: Vec<Vec<u8>> = (0..3000).map(|i| vec![i as u8; i % 7]).collect();
    let slices: Vec<_> = parts.iter().map(|part| io::IoSlice::new(part)).collect();
    device.write_vectored_at(777, &slices).unwrap();
    let bulk = AlignedBuf::copy_of(&vec![9; 256 << 10]).freeze();
    wait(|done| device.start_write(1 << 20, bulk.clone(), done)).unwrap();
    wait(|done| device.start_write((4 << 20) + 5, Bytes::from_static(b"unaligned"), done)).unwrap();
    wait(|done| device.start_flush(done)).unwrap();
    drop(device);

    let device = FileDevice::open(&dir, &engine).unwrap();
    let expected = parts.concat();
    let mut found = vec![0; expected.len()];
    device.read_at(777, &mut found).unwrap();
    assert_eq!(found, expected);
    let read = wait(|done| device.start_read(1 << 20, 256 << 10, done)).unwrap();
    assert_eq!(read, bulk);
    assert_eq!(read.as_ptr() as usize % ALIGNMENT, 0);
    let read = wait(|done| device.start_read((4 << 20) + 5, 9, done)).unwrap();
    assert_eq!(&read[..], b"unaligned");
}

#[test]
fn many_transfers_at_once_with_and_without_a_ring() {
    let unit = 64 << 10;
    for engine in [Engine::new(), Engine::with_threads()] {
        let dir = tempfile::tempdir().unwrap();
        let device = FileDevice::create(dir.path(), &options(64 << 20), &engine).unwrap();
        let (send, receive) = mpsc::channel();
        let count = 600_u64;
        for number in 0..count {
            let send = send.clone();
            let data = AlignedBuf::copy_of(&vec![number as u8; unit]).freeze();
            let done: Done<()> = Box::new(move |result| send.send(result).unwrap());
            device.start_write(number * unit as u64, data, done);
        }
        assert!((0..count).all(|_| receive.recv().unwrap().is_ok()));
        let (send, receive) = mpsc::channel();
        for number in 0..count {
            let send = send.clone();
            let done: Done<Bytes> = Box::new(move |result| send.send((number, result)).unwrap());
            device.start_read(number * unit as u64, unit, done);
        }
        drop((device, engine));
        for _ in 0..count {
            let (number, result) = receive.recv().unwrap();
            assert_eq!(result.unwrap(), vec![number as u8; unit]);
        }
    }
}

#[test]
fn a_file_cut_short_behind_our_back_gives_errors() {
    for engine in [Engine::new(), Engine::with_threads()] {
        let dir = tempfile::tempdir().unwrap();
        let device = FileDevice::create(dir.path(), &options(1 << 20), &engine).unwrap();
        let file = OpenOptions::new()
            .write(true)
            .open(dir.path().join(BRICK_FILE));
        file.unwrap().set_len(100 << 10).unwrap();
        let error = wait(|done| device.start_read(64 << 10, 64 << 10, done)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn access_beyond_the_end_is_an_error() {
    let engine = Engine::new();
    let dir = tempfile::tempdir().unwrap();
    let device = FileDevice::create(dir.path(), &options(LEAST), &engine).unwrap();
    assert!(device.read_at(LEAST - 1, &mut [0; 2]).is_err());
    assert!(device.write_at(u64::MAX, &[0]).is_err());
    assert!(device.allocate(LEAST, 1).is_err());
    let data = Bytes::from_static(&[1, 2]);
    assert!(wait(|done| device.start_write(LEAST - 1, data, done)).is_err());
    assert!(wait(|done| device.start_read(LEAST - 1, 2, done)).is_err());
    assert_eq!(device.inner.file.metadata().unwrap().len(), LEAST);
}

#[test]
fn allocation_keeps_contents_and_discard_gives_space_back() {
    let engine = Engine::new();
    let dir = tempfile::tempdir().unwrap();
    let device = FileDevice::create(dir.path(), &options(4 << 20), &engine).unwrap();
    device.write_at(10, b"kept").unwrap();
    device.allocate(0, 2 << 20).unwrap();
    let blocks = || device.inner.file.metadata().unwrap().blocks() * 512;
    assert!(blocks() >= 2 << 20);
    let mut found = [0; 4];
    device.read_at(10, &mut found).unwrap();
    assert_eq!(&found, b"kept");
    device.discard(0, 2 << 20);
    assert_eq!(blocks(), 0);
}

#[test]
fn a_second_user_is_refused_and_told_who_has_it() {
    let engine = Engine::new();
    let dir = tempfile::tempdir().unwrap();
    let device = FileDevice::create(dir.path(), &options(LEAST), &engine).unwrap();
    for second in [
        FileDevice::open(dir.path(), &engine).err(),
        FileDevice::open_read_only(dir.path(), &engine).err(),
        FileDevice::create(
            dir.path(),
            &CreateOptions {
                force: true,
                ..options(LEAST)
            },
            &engine,
        )
        .err(),
    ] {
        match second {
            Some(TargetError::InUse { pid, .. }) => {
                assert!(pid.is_none_or(|pid| pid == std::process::id()));
            }
            other => panic!("{other:?}"),
        }
    }
    drop(device);
    let reader = FileDevice::open_read_only(dir.path(), &engine).unwrap();
    FileDevice::open_read_only(dir.path(), &engine).unwrap();
    assert!(FileDevice::open(dir.path(), &engine).is_err());
    assert!(reader.write_at(0, b"x").is_err());
}

#[test]
fn what_holds_data_is_refused_unless_forced() {
    let engine = Engine::new();
    let force = CreateOptions {
        force: true,
        ..options(2 << 20)
    };
    let refused = |path: &Path| match FileDevice::create(path, &options(2 << 20), &engine) {
        Err(TargetError::NotEmpty { .. }) => {}
        other => panic!("{:?}", other.err()),
    };

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letter"), "dear").unwrap();
    refused(dir.path());
    FileDevice::create(dir.path(), &force, &engine).unwrap();
    refused(dir.path());

    let file = dir.path().join("image");
    for at in [100, (3 << 20) - 1] {
        let image = File::create(&file).unwrap();
        image.set_len(3 << 20).unwrap();
        image.write_all_at(b"x", at).unwrap();
        refused(&file);
    }
    let device = FileDevice::create(&file, &force, &engine).unwrap();
    assert_eq!(device.len(), 2 << 20);
    drop(device);
    FileDevice::create(&file, &options(2 << 20), &engine).unwrap();
}

#[test]
fn too_small_or_missing_targets_are_named() {
    let engine = Engine::new();
    let dir = tempfile::tempdir().unwrap();
    let small = FileDevice::create(dir.path(), &options(LEAST / 2), &engine);
    assert!(matches!(small.err(), Some(TargetError::TooSmall { .. })));
    assert!(!dir.path().join(BRICK_FILE).exists());
    let missing = dir.path().join("no");
    let error = FileDevice::open(&missing, &engine).err();
    assert!(matches!(error, Some(TargetError::Missing(_))));
    let error = FileDevice::create(Path::new("/dev/null"), &options(LEAST), &engine).err();
    assert!(matches!(error, Some(TargetError::WrongKind(_))));
}
