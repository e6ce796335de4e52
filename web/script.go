package web

// scriptHash is the SHA-256 of the page's script, which the content security policy names; a test holds it fresh.
const scriptHash = "JM0U7MOYCyuDzZydN0RGO/ZPs6HoROzdPgJQB4RukR4="
