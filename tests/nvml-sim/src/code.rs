//! The return codes of NVML (`nvmlReturn_t`), as the header numbers them.

/// An `nvmlReturn_t`. A newtype and not an enum, because a test may inject any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Code(pub u32);

/// What a step of the model answers: a value, or the code that NVML would return.
pub type Answer<T> = Result<T, Code>;

macro_rules! codes {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        impl Code {
            $(
                #[doc = concat!("`", stringify!($name), "`: ", $text, ".")]
                pub const $name: Code = Code($number);
            )*

            /// The sentence that `nvmlErrorString` gives for this code, ended by a NUL byte.
            pub(crate) fn text(self) -> &'static std::ffi::CStr {
                match self.0 {
                    $($number => {
                        const BYTES: &[u8] = concat!($text, "\0").as_bytes();
                        const TEXT: &std::ffi::CStr = match std::ffi::CStr::from_bytes_with_nul(BYTES) {
                            Ok(text) => text,
                            Err(_) => c"",
                        };
                        TEXT
                    })*
                    _ => c"Unknown Error",
                }
            }
        }
    };
}

codes! {
    SUCCESS = 0, "Success";
    UNINITIALIZED = 1, "Uninitialized";
    INVALID_ARGUMENT = 2, "Invalid Argument";
    NOT_SUPPORTED = 3, "Not Supported";
    NO_PERMISSION = 4, "Insufficient Permissions";
    NOT_FOUND = 6, "Not Found";
    INSUFFICIENT_SIZE = 7, "Insufficient Size";
    DRIVER_NOT_LOADED = 9, "Driver Not Loaded";
    TIMEOUT = 10, "Timeout";
    LIBRARY_NOT_FOUND = 12, "NVML Shared Library Not Found";
    FUNCTION_NOT_FOUND = 13, "Function Not Found";
    GPU_IS_LOST = 15, "GPU is lost";
    RESET_REQUIRED = 16, "GPU requires reset";
    OPERATING_SYSTEM = 17, "The operating system has blocked the request";
    LIB_RM_VERSION_MISMATCH = 18, "RM has detected an NVML/RM version mismatch";
    IN_USE = 19, "In use by another client";
    MEMORY = 20, "Insufficient Memory";
    NO_DATA = 21, "No data";
    INSUFFICIENT_RESOURCES = 23, "Insufficient Resources";
    ARGUMENT_VERSION_MISMATCH = 25, "Version mismatch";
    DEPRECATED = 26, "Deprecated";
    NOT_READY = 27, "Not Ready";
    GPU_NOT_FOUND = 28, "GPU not found";
    INVALID_STATE = 29, "Invalid state";
    UNKNOWN = 999, "Unknown Error";
}
