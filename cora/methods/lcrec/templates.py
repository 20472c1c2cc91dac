"""The texts around histories, titles and codes. A response follows a text directly, so each says of what kind it is."""

# A sequence of codes goes on behind the text: the next code is the response, wherever the sequence is cut.
SEQREC = (
    "The codes of the items that one person chose, from the first to the most recent, each next one after the last:",
    "In order of time, somebody picked the items with these codes:",
    "A user's choices, oldest first, written as item codes:",
    "Below is a history as a list of item codes in the order in which they were chosen. Go on with it:",
    "These are the codes of what a customer took, one after another:",
)
TITLE_TO_CODE = (
    "The item called {title} has the code",
    "Name the code under which {title} is kept:",
    "Title: {title}. Code:",
    "Which code stands for {title}? It is",
    "{title} is written as the item code",
)
CODE_TO_TITLE = (
    "The item code {code} belongs to the title",
    "What is the item with the code {code} called? Its title is",
    "Code: {code}. Title:",
    "Behind the item code {code} is something named",
    "Say the title that {code} is the code of:",
)
HISTORY_TO_TITLE = (
    "Somebody chose the items with these codes, oldest first: {history}. The title of what they chose next is",
    "Item codes of one user in order of time: {history}. Title of the next item:",
    "After {history}, in this order, the user went on to an item whose title is",
    "History of codes, the newest last: {history}. Name the title that follows:",
)
TITLES_TO_CODE = (
    "Somebody chose {history}, in this order. The code of what they chose next is",
    "One user's items, oldest first: {history}. Code of the next item:",
    "After {history}, the newest last, this user went on to the item with the code",
    "The titles of a history in order of time: {history}. Give the item code that follows:",
)
