"""LC-Rec: items are codes that the language model reads and writes, and a recommendation is a code it generates."""
