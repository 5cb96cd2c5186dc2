//! Return codes and nvml-wrapper's errors as [`CallError`]s.

use nvml_wrapper::error::NvmlError;

use super::{CallError, Code};

/// Names the call that nvml-wrapper made on our behalf.
pub(super) fn wrapped(call: &'static str) -> impl FnOnce(NvmlError) -> CallError {
    move |error| CallError { call, code: code_of(&error) }
}

/// Turns a raw return value into a result that names the call.
pub(super) fn check(call: &'static str, value: u32) -> Result<(), CallError> {
    match Code(value) {
        Code::SUCCESS => Ok(()),
        code => Err(CallError { call, code }),
    }
}

fn code_of(error: &NvmlError) -> Code {
    match error {
        NvmlError::UnexpectedVariant(code) => Code(*code),
        NvmlError::InvalidArg => Code::INVALID_ARGUMENT,
        NvmlError::NotSupported => Code::NOT_SUPPORTED,
        NvmlError::NoPermission => Code::NO_PERMISSION,
        NvmlError::NotFound => Code::NOT_FOUND,
        NvmlError::DriverNotLoaded => Code(9),
        NvmlError::Timeout => Code(10),
        NvmlError::LibraryNotFound | NvmlError::LibloadingError(_) => Code(12),
        NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_) => Code::FUNCTION_NOT_FOUND,
        NvmlError::GpuLost => Code::GPU_IS_LOST,
        NvmlError::ResetRequired => Code::RESET_REQUIRED,
        NvmlError::OperatingSystem => Code(17),
        NvmlError::LibRmVersionMismatch => Code(18),
        NvmlError::InUse => Code::IN_USE,
        NvmlError::Uninitialized => Code(1),
        _ => Code::UNKNOWN,
    }
}
