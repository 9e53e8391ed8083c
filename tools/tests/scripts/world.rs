//! What the generator believes to be there, so that most commands make sense. It need not be right: commands fail, too.

use crate::random::Random;

/// Names of images.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

#[derive(Clone, Debug)]
pub struct Known {
    pub name: String,
    pub format: &'static str,
    pub size: u64,
    pub cluster: u64,
    pub backing: Option<String>,
    pub snapshots: Vec<String>,
    pub bitmaps: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub struct World {
    pub images: Vec<Known>,
    named: u64,
}

impl World {
    pub fn find(&self, name: &str) -> Option<&Known> {
        self.images.iter().find(|image| image.name == name)
    }

    pub fn find_mut(&mut self, name: &str) -> Option<&mut Known> {
        self.images.iter_mut().find(|image| image.name == name)
    }

    /// Notes an image, in the place of one of the same name.
    pub fn put(&mut self, image: Known) {
        self.images.retain(|other| other.name != image.name);
        self.images.push(image);
    }

    /// Any image; there always is one.
    pub fn any(&self, random: &mut Random) -> Known {
        random.pick(&self.images).clone()
    }

    /// Any image, more often than not one of `format`.
    pub fn any_of(&self, random: &mut Random, format: &str) -> Known {
        let of_format: Vec<&Known> =
            self.images.iter().filter(|image| image.format == format).collect();
        match random.pick_any(&of_format) {
            Some(image) if random.chance(95) => (*image).clone(),
            _ => self.any(random),
        }
    }

    /// A name for a new image that is none of `kept` and below no image: a free one, or perhaps one to be overwritten.
    pub fn free_name(&self, random: &mut Random, kept: &[&str]) -> Option<String> {
        let is_below =
            |name: &str| self.images.iter().any(|image| image.backing.as_deref() == Some(name));
        let is_needed =
            |name: &str| is_below(name) || kept.iter().any(|top| self.reaches(top, name));
        let names: Vec<&str> = NAMES.into_iter().filter(|name| !is_needed(name)).collect();
        let free: Vec<&str> =
            names.iter().copied().filter(|name| self.find(name).is_none()).collect();
        let choices = if free.is_empty() || random.chance(25) { &names } else { &free };
        random.pick_any(choices).map(|&name| name.to_owned())
    }

    /// Whether `name` is `top` or below it.
    pub fn reaches(&self, top: &str, name: &str) -> bool {
        let mut at = Some(top);
        for _ in 0..=self.images.len() {
            match at {
                Some(layer) if layer == name => return true,
                Some(layer) => at = self.find(layer).and_then(|image| image.backing.as_deref()),
                None => return false,
            }
        }
        true
    }

    /// A name for a snapshot or bitmap that was not used before.
    pub fn new_name(&mut self, prefix: &str) -> String {
        self.named += 1;
        format!("{prefix}{}", self.named)
    }
}
