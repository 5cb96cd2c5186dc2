//! Facts that are unknown because a call failed which concerns nothing else.

use super::CallError;

/// Calls that failed without taking the GPU with them.
#[derive(Debug, Default)]
pub(super) struct Unknown(pub(super) Vec<CallError>);

impl Unknown {
    /// Notes an error, once.
    pub(super) fn add(&mut self, error: CallError) {
        if !self.0.contains(&error) {
            self.0.push(error);
        }
    }

    /// The fact; nothing where it is unknown. Fails where the error is not about the fact alone.
    pub(super) fn fact<T>(&mut self, read: Result<T, CallError>) -> Result<Option<T>, CallError> {
        match read {
            Ok(fact) => Ok(Some(fact)),
            Err(error) if error.concerns_whole_gpu() => Err(error),
            Err(error) => {
                self.add(error);
                Ok(None)
            }
        }
    }
}
