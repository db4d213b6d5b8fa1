//! The rules of all texts of the domain: bounds, and no control characters.

/// A value the domain rejects. The message says what is allowed and never repeats the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct ValidationError {
    /// Name of the field.
    pub field: &'static str,
    /// What is wrong and what is allowed.
    pub problem: String,
}

impl ValidationError {
    pub(super) fn new(field: &'static str, problem: impl Into<String>) -> ValidationError {
        ValidationError { field, problem: problem.into() }
    }
}

/// Checks a text of 1 to `max` characters. Control characters are rejected: U+0000 cannot be stored, and the others
/// do not belong in a name.
pub(super) fn bounded(field: &'static str, text: String, max: usize) -> Result<String, ValidationError> {
    let characters = text.chars().count();
    if characters == 0 || characters > max {
        return Err(ValidationError::new(field, format!("must have 1 to {max} characters")));
    }
    if text.chars().any(char::is_control) {
        return Err(ValidationError::new(field, "must not contain control characters"));
    }
    Ok(text)
}
