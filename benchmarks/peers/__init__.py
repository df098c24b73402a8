"""Other libraries, each behind one adapter written in that library's own idiom."""
