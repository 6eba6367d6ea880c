"""Send results to the destination by C-STORE."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, ParametricMapStorage
from pynetdicom import AE
from pynetdicom.association import Association

from client.dicom.files import PLUGINS
from client.formats.dicom_original import CLASSES
from client.node.config import Config

CONNECT, ANSWER = 10.0, 60.0
"""Maximum seconds to connect, and for an answer."""
ALREADY_THERE = 0x0111
"""The instance exists. The same job gives the same UID, so that it is this result."""
SYNTAXES = [str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)]


class Sender:
    """Keeps one association while there is something to send."""

    def __init__(self, config: Config) -> None:
        self.destination, self.tls = config.destination, config.destination_tls
        self.ae = AE(ae_title=config.listen.ae_title)
        self.ae.connection_timeout = CONNECT
        self.ae.acse_timeout = self.ae.dimse_timeout = self.ae.network_timeout = ANSWER
        self.ae.maximum_pdu_size = 0
        for kind in CLASSES:
            self.ae.add_requested_context(kind, SYNTAXES)
            if config.output.compress is not None:
                self.ae.add_requested_context(kind, str(PLUGINS[config.output.compress][0]))  # type: ignore[index]
        if config.output.uncertainty:
            self.ae.add_requested_context(ParametricMapStorage, SYNTAXES)
        self._association: Association | None = None

    def send(self, paths: Sequence[Path]) -> str | None:
        """Send files; return None, or why the destination does not take one of them.

        Raises:
            ConnectionError: the destination cannot be reached, rejects the node, or cannot store anything at present.
        """
        for path in paths:
            dataset = pydicom.dcmread(path)
            association = self._connected()
            try:
                status = association.send_c_store(dataset)
            except (ValueError, RuntimeError) as error:
                if isinstance(error, ValueError) and association.is_established:
                    syntax = dataset.file_meta.TransferSyntaxUID
                    return f"the destination does not take {dataset.SOPClassUID.name} as {syntax.name}"
                status = Dataset()  # the association has ended
            if "Status" not in status:
                self.release()
                raise ConnectionError("the association ended before an answer")
            if status.Status >> 8 == 0xA7:
                raise ConnectionError(f"the destination is out of resources (status {status.Status:04X})")
            stored = status.Status in (0, ALREADY_THERE) or status.Status >> 12 == 0xB
            if not stored:
                comment = str(status.get("ErrorComment") or "")
                return f"the destination refuses it (status {status.Status:04X}{', ' + comment if comment else ''})"
        return None

    def release(self) -> None:
        """End the association."""
        if self._association is not None:
            if self._association.is_established:
                self._association.release()
            self._association = None

    def _connected(self) -> Association:
        if self._association is not None and self._association.is_established:
            return self._association
        place = self.destination
        tls = None if self.tls is None else (self.tls, place.host)
        association = self.ae.associate(place.host, place.port, ae_title=place.ae_title, tls_args=tls)
        if not association.is_established:
            raise ConnectionError(self._problem(association))
        self._association = association
        return association

    def _problem(self, association: Association) -> str:
        """Return why there is no association."""
        place = self.destination
        where = f"{place.ae_title} at {place.host}:{place.port}"
        if association.is_rejected:
            reason = getattr(association.acceptor.primitive, "reason_str", None) or "no reason given"
            return f"{where} rejects {self.ae.ae_title}: {reason}"
        try:
            with socket.create_connection((place.host, place.port), CONNECT) as connection:
                if self.tls is not None:
                    self.tls.wrap_socket(connection, server_hostname=place.host).close()
        except ssl.SSLError as error:
            return f"{where}: TLS: {getattr(error, 'verify_message', '') or error.reason or error}"
        except OSError as error:
            return f"{where} cannot be reached: {error.strerror or error}"
        hint = "" if self.tls is not None else "; does it require TLS?"
        return f"{where} aborts the association{hint}"
