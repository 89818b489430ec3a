"""Who may use the web application: users with a role, a password and tokens, in one file.

`python -m app.credentials` writes the file. Nothing here knows the web framework.
"""

from app.credentials.file import CredentialsError, CredentialsFile
from app.credentials.users import Role, User, Users

__all__ = ["CredentialsError", "CredentialsFile", "Role", "User", "Users"]
