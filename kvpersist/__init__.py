"""Write-through persistence for python-telegram-bot: every document is one JSON row."""
