//! What all texts of the domain have in common: bounds, and no control characters.

/// [`bounded`]'s rule on characters as a regular expression, for schemas.
pub(super) const PRINTABLE: &str = r"^[^\u0000-\u001f\u007f-\u009f]*$";

/// A value the domain does not take. The message says what is allowed and never repeats the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct ValidationError {
    /// The field, as it is called in the API.
    pub field: &'static str,
    /// What is wrong and what is allowed.
    pub problem: String,
}

impl ValidationError {
    pub(super) fn new(field: &'static str, problem: impl Into<String>) -> ValidationError {
        ValidationError { field, problem: problem.into() }
    }
}

/// Checks a text of 1 to `most` characters. Control characters are refused: U+0000 cannot be stored, and the others
/// have no business in a name.
pub(super) fn bounded(field: &'static str, text: String, most: usize) -> Result<String, ValidationError> {
    let characters = text.chars().count();
    if characters == 0 || characters > most {
        return Err(ValidationError::new(field, format!("must have 1 to {most} characters")));
    }
    if text.chars().any(char::is_control) {
        return Err(ValidationError::new(field, "must not contain control characters"));
    }
    Ok(text)
}
