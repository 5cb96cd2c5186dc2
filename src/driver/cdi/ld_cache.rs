//! Reads `/etc/ld.so.cache`, which knows library directories that no list of usual places has.
//!
//! Format: glibc `sysdeps/generic/dl-cache.h`. A cache may begin with the old `ld.so-1.7.0` table; the one that counts
//! follows it, 8-byte aligned: a 48-byte header (`glibc-ld.so.cache1.1`, count, length of strings, flags, ...), then
//! entries of 24 bytes (flags, offset of the name, offset of the path, OS version, hwcap). Offsets count from that
//! header. The bytes come from a driver root that this program does not own, so nothing in them is believed
//! unchecked; a cache of the other byte order or without the new table is refused.

const OLD_MAGIC: &[u8] = b"ld.so-1.7.0\0";
const OLD_HEADER: usize = 16;
const OLD_ENTRY: usize = 12;
const NEW_MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const NEW_HEADER: usize = 48;
const NEW_ENTRY: usize = 24;
/// Header byte with the byte order: 0 not set (before glibc 2.33), 2 little, 3 big endian.
const ENDIANNESS_AT: usize = 28;
const BIG_ENDIAN: u8 = 3;
/// Low byte of an entry's flags for an ELF library (libc6 has 3, which includes the bit).
const ELF: u32 = 0x0001;
/// High byte of an entry's flags for the 64-bit ABIs that NVIDIA's driver exists for: x86-64, arm64, ppc64le.
const ARCHITECTURES_64: [u32; 3] = [0x0300, 0x0a00, 0x0500];

/// PATH_MAX of Linux. Without a limit, many entries that point to one long text take for ever.
const LONGEST_PATH: usize = 4096;

/// Why a cache can't be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum LdCacheError {
    #[error("it is not an ld.so.cache of glibc 2.2 or later")]
    NotACache,
    #[error("it is cut short")]
    Truncated,
    #[error("it was made for the other byte order")]
    ByteOrder,
}

/// The paths of all 64-bit libraries in the cache, in its order. Entries that point outside of it, or to a path that
/// is not an absolute UTF-8 text, are skipped.
pub(super) fn library_paths(bytes: &[u8]) -> Result<Vec<&str>, LdCacheError> {
    let cache = bytes.get(start_of_new_table(bytes)?..).ok_or(LdCacheError::Truncated)?;
    if !cache.starts_with(NEW_MAGIC) {
        return Err(LdCacheError::NotACache);
    }
    if cache.get(ENDIANNESS_AT).is_some_and(|b| b & 3 == BIG_ENDIAN) {
        return Err(LdCacheError::ByteOrder);
    }
    let size = count_at(cache, NEW_MAGIC.len())?.checked_mul(NEW_ENTRY).ok_or(LdCacheError::Truncated)?;
    let entries = cache.get(NEW_HEADER..).and_then(|rest| rest.get(..size)).ok_or(LdCacheError::Truncated)?;
    Ok(entries.chunks_exact(NEW_ENTRY).filter_map(|entry| library_path(cache, entry)).collect())
}

fn start_of_new_table(bytes: &[u8]) -> Result<usize, LdCacheError> {
    if !bytes.starts_with(OLD_MAGIC) {
        return Ok(0);
    }
    let entries = count_at(bytes, OLD_MAGIC.len())?.checked_mul(OLD_ENTRY);
    let end = entries.and_then(|size| size.checked_add(OLD_HEADER)).ok_or(LdCacheError::Truncated)?;
    end.checked_next_multiple_of(8).ok_or(LdCacheError::Truncated)
}

fn library_path<'a>(cache: &'a [u8], entry: &[u8]) -> Option<&'a str> {
    let flags = u32_at(entry, 0)?;
    if flags & ELF == 0 || !ARCHITECTURES_64.contains(&(flags & 0xff00)) {
        return None;
    }
    let start = usize::try_from(u32_at(entry, 8)?).ok()?;
    let text = cache.get(start..)?;
    let text = &text[..text.len().min(LONGEST_PATH)];
    let end = text.iter().position(|&b| b == 0)?;
    std::str::from_utf8(&text[..end]).ok().filter(|path| path.starts_with('/'))
}

fn count_at(bytes: &[u8], at: usize) -> Result<usize, LdCacheError> {
    u32_at(bytes, at).and_then(|n| usize::try_from(n).ok()).ok_or(LdCacheError::Truncated)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_le_bytes(*four))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A cache in the new format with `(flags, path)` entries, written from the format's description.
    pub(crate) fn cache_of(entries: &[(u32, &str)]) -> Vec<u8> {
        let mut strings = Vec::new();
        let mut table = Vec::new();
        let strings_at = NEW_HEADER + entries.len() * NEW_ENTRY;
        for (flags, path) in entries {
            let offset = |at: usize| u32::try_from(strings_at + at).unwrap().to_le_bytes();
            let path_at = strings.len();
            let name_at = path_at + path.rfind('/').map_or(0, |slash| slash + 1);
            strings.extend_from_slice(path.as_bytes());
            strings.push(0);
            table.extend_from_slice(&flags.to_le_bytes());
            table.extend_from_slice(&offset(name_at));
            table.extend_from_slice(&offset(path_at));
            table.extend_from_slice(&[0; 12]);
        }
        let mut cache = NEW_MAGIC.to_vec();
        cache.extend_from_slice(&u32::try_from(entries.len()).unwrap().to_le_bytes());
        cache.extend_from_slice(&u32::try_from(strings.len()).unwrap().to_le_bytes());
        cache.extend_from_slice(&[2, 0, 0, 0]);
        cache.resize(NEW_HEADER, 0);
        cache.extend(table);
        cache.extend(strings);
        cache
    }

    #[test]
    fn only_64_bit_libraries_are_listed() {
        let cache = cache_of(&[
            (0x0303, "/usr/lib64/libcuda.so.1"),
            (0x0003, "/usr/lib/libcuda.so.1"),
            (0x0803, "/usr/libx32/libcuda.so.1"),
            (0x0a03, "/usr/lib/aarch64-linux-gnu/libcuda.so.1"),
            (0x0300, "/usr/lib64/not-elf.so"),
            (0x0303, "relative.so"),
        ]);
        let expected = ["/usr/lib64/libcuda.so.1", "/usr/lib/aarch64-linux-gnu/libcuda.so.1"];
        assert_eq!(library_paths(&cache).unwrap(), expected);
    }

    #[test]
    fn the_old_table_before_the_new_one_is_skipped() {
        let mut both = OLD_MAGIC.to_vec();
        both.extend_from_slice(&1u32.to_le_bytes());
        both.extend_from_slice(&[0; OLD_ENTRY]);
        both.resize(both.len().next_multiple_of(8), 0);
        both.extend(cache_of(&[(0x0303, "/opt/libcuda.so.1")]));
        assert_eq!(library_paths(&both).unwrap(), ["/opt/libcuda.so.1"]);
    }

    #[test]
    fn what_is_not_a_cache_is_refused() {
        let whole = cache_of(&[(0x0303, "/usr/lib64/libcuda.so.1")]);
        let mut big = whole.clone();
        big[ENDIANNESS_AT] = BIG_ENDIAN;
        let mut many = whole.clone();
        many[NEW_MAGIC.len()..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(library_paths(b""), Err(LdCacheError::NotACache));
        assert_eq!(library_paths(b"ELF"), Err(LdCacheError::NotACache));
        assert_eq!(library_paths(OLD_MAGIC), Err(LdCacheError::Truncated));
        assert_eq!(library_paths(&whole[..NEW_HEADER]), Err(LdCacheError::Truncated));
        assert_eq!(library_paths(&big), Err(LdCacheError::ByteOrder));
        assert_eq!(library_paths(&many), Err(LdCacheError::Truncated));
    }

    #[test]
    fn an_entry_that_points_outside_is_skipped() {
        let mut cache = cache_of(&[(0x0303, "/a/lib1.so"), (0x0303, "/a/lib2.so")]);
        cache[NEW_HEADER + 8..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(library_paths(&cache).unwrap(), ["/a/lib2.so"]);
        cache.pop();
        assert_eq!(library_paths(&cache).unwrap(), [""; 0], "the last text has no end");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = library_paths(&bytes);
        }

        #[test]
        fn a_damaged_cache_never_panics_and_lists_only_absolute_paths(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..16),
            length in any::<prop::sample::Index>(),
            old in any::<bool>(),
        ) {
            let mut bytes = if old { [OLD_MAGIC, &[0; 4]].concat() } else { Vec::new() };
            bytes.extend(cache_of(&[(0x0303, "/usr/lib64/libcuda.so.1"), (0x0a03, "/opt/x/libnvidia-ml.so.1")]));
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(length.index(bytes.len() + 1));
            for path in library_paths(&bytes).unwrap_or_default() {
                prop_assert!(path.starts_with('/'));
            }
        }
    }
}
