//! What gluster 10.3 printed.

pub(super) const LIST_XML: &str = "\
<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n\
<cliOutput>\n\
\x20 <opRet>0</opRet>\n\
\x20 <opErrno>0</opErrno>\n\
\x20 <opErrstr/>\n\
\x20 <volList>\n\
\x20   <count>7</count>\n\
\x20   <volume>arb</volume>\n\
\x20   <volume>dist</volume>\n\
\x20   <volume>dr</volume>\n\
\x20   <volume>ec</volume>\n\
\x20   <volume>ec6</volume>\n\
\x20   <volume>rep2</volume>\n\
\x20   <volume>rep3</volume>\n\
\x20 </volList>\n\
</cliOutput>\n\
";

/// With the options in the order of their names, and our transport.
pub(super) const INFO_TEXT: &str = "\
\x20\n\
Volume Name: rep3\n\
Type: Replicate\n\
Volume ID: 31c6d837-b998-4efb-b2ea-4d025b27690a\n\
Status: Created\n\
Snapshot Count: 0\n\
Number of Bricks: 1 x 3 = 3\n\
Transport-type: quic\n\
Bricks:\n\
Brick1: 10.77.0.1:/bricks/rep3\n\
Brick2: 10.77.0.2:/bricks/rep3\n\
Brick3: 10.77.0.3:/bricks/rep3\n\
Options Reconfigured:\n\
cluster.granular-entry-heal: on\n\
nfs.disable: on\n\
performance.client-io-threads: off\n\
storage.fips-mode-rchecksum: on\n\
transport.address-family: inet\n\
";

/// With the options in the order of their names.
pub(super) const INFO_XML: &str = "\
<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n\
<cliOutput>\n\
\x20 <opRet>0</opRet>\n\
\x20 <opErrno>0</opErrno>\n\
\x20 <opErrstr/>\n\
\x20 <volInfo>\n\
\x20   <volumes>\n\
\x20     <volume>\n\
\x20       <name>rep3</name>\n\
\x20       <id>31c6d837-b998-4efb-b2ea-4d025b27690a</id>\n\
\x20       <status>0</status>\n\
\x20       <statusStr>Created</statusStr>\n\
\x20       <snapshotCount>0</snapshotCount>\n\
\x20       <brickCount>3</brickCount>\n\
\x20       <distCount>1</distCount>\n\
\x20       <replicaCount>3</replicaCount>\n\
\x20       <arbiterCount>0</arbiterCount>\n\
\x20       <disperseCount>0</disperseCount>\n\
\x20       <redundancyCount>0</redundancyCount>\n\
\x20       <type>2</type>\n\
\x20       <typeStr>Replicate</typeStr>\n\
\x20       <transport>0</transport>\n\
\x20       <bricks>\n\
\x20         <brick uuid=\"18c3ed55-4f4b-401e-bf3f-4f69a773b1d3\">10.77.0.1:/bricks/rep3<name>10.77.0.1:/bricks/rep3</name><hostUuid>18c3ed55-4f4b-401e-bf3f-4f69a773b1d3</hostUuid><isArbiter>0</isArbiter></brick>\n\
\x20         <brick uuid=\"beeacb2b-b7d8-4465-8dc2-01e397e633cb\">10.77.0.2:/bricks/rep3<name>10.77.0.2:/bricks/rep3</name><hostUuid>beeacb2b-b7d8-4465-8dc2-01e397e633cb</hostUuid><isArbiter>0</isArbiter></brick>\n\
\x20         <brick uuid=\"2904b350-b03d-437e-8831-65337dae63be\">10.77.0.3:/bricks/rep3<name>10.77.0.3:/bricks/rep3</name><hostUuid>2904b350-b03d-437e-8831-65337dae63be</hostUuid><isArbiter>0</isArbiter></brick>\n\
\x20       </bricks>\n\
\x20       <optCount>5</optCount>\n\
\x20       <options>\n\
\x20         <option>\n\
\x20           <name>cluster.granular-entry-heal</name>\n\
\x20           <value>on</value>\n\
\x20         </option>\n\
\x20         <option>\n\
\x20           <name>nfs.disable</name>\n\
\x20           <value>on</value>\n\
\x20         </option>\n\
\x20         <option>\n\
\x20           <name>performance.client-io-threads</name>\n\
\x20           <value>off</value>\n\
\x20         </option>\n\
\x20         <option>\n\
\x20           <name>storage.fips-mode-rchecksum</name>\n\
\x20           <value>on</value>\n\
\x20         </option>\n\
\x20         <option>\n\
\x20           <name>transport.address-family</name>\n\
\x20           <value>inet</value>\n\
\x20         </option>\n\
\x20       </options>\n\
\x20     </volume>\n\
\x20     <count>1</count>\n\
\x20   </volumes>\n\
\x20 </volInfo>\n\
</cliOutput>\n\
";

/// Without the self-heal daemons, which Mortar does not have.
pub(super) const STATUS_TEXT: &str = "\
Status of volume: rep3\n\
Gluster process                             TCP Port  RDMA Port  Online  Pid\n\
------------------------------------------------------------------------------\n\
Brick 10.77.0.1:/bricks/rep3                54735     0          Y       9272 \n\
Brick 10.77.0.2:/bricks/rep3                50316     0          Y       9307 \n\
Brick 10.77.0.3:/bricks/rep3                60004     0          Y       9300 \n\
\x20\n\
Task Status of Volume rep3\n\
------------------------------------------------------------------------------\n\
There are no active volume tasks\n\
\x20\n\
";

/// As above.
pub(super) const STATUS_OFFLINE: &str = "\
Status of volume: rep3\n\
Gluster process                             TCP Port  RDMA Port  Online  Pid\n\
------------------------------------------------------------------------------\n\
Brick 10.77.0.1:/bricks/rep3                N/A       N/A        N       N/A  \n\
Brick 10.77.0.2:/bricks/rep3                N/A       N/A        N       N/A  \n\
Brick 10.77.0.3:/bricks/rep3                N/A       N/A        N       N/A  \n\
\x20\n\
Task Status of Volume rep3\n\
------------------------------------------------------------------------------\n\
There are no active volume tasks\n\
\x20\n\
";

/// As above.
pub(super) const STATUS_XML: &str = "\
<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n\
<cliOutput>\n\
\x20 <opRet>0</opRet>\n\
\x20 <opErrno>0</opErrno>\n\
\x20 <opErrstr/>\n\
\x20 <volStatus>\n\
\x20   <volumes>\n\
\x20     <volume>\n\
\x20       <volName>rep3</volName>\n\
\x20       <nodeCount>3</nodeCount>\n\
\x20       <node>\n\
\x20         <hostname>10.77.0.1</hostname>\n\
\x20         <path>/bricks/rep3</path>\n\
\x20         <peerid>18c3ed55-4f4b-401e-bf3f-4f69a773b1d3</peerid>\n\
\x20         <status>1</status>\n\
\x20         <port>54735</port>\n\
\x20         <ports>\n\
\x20           <tcp>54735</tcp>\n\
\x20           <rdma>N/A</rdma>\n\
\x20         </ports>\n\
\x20         <pid>9272</pid>\n\
\x20       </node>\n\
\x20       <node>\n\
\x20         <hostname>10.77.0.2</hostname>\n\
\x20         <path>/bricks/rep3</path>\n\
\x20         <peerid>beeacb2b-b7d8-4465-8dc2-01e397e633cb</peerid>\n\
\x20         <status>1</status>\n\
\x20         <port>50316</port>\n\
\x20         <ports>\n\
\x20           <tcp>50316</tcp>\n\
\x20           <rdma>N/A</rdma>\n\
\x20         </ports>\n\
\x20         <pid>9307</pid>\n\
\x20       </node>\n\
\x20       <node>\n\
\x20         <hostname>10.77.0.3</hostname>\n\
\x20         <path>/bricks/rep3</path>\n\
\x20         <peerid>2904b350-b03d-437e-8831-65337dae63be</peerid>\n\
\x20         <status>1</status>\n\
\x20         <port>60004</port>\n\
\x20         <ports>\n\
\x20           <tcp>60004</tcp>\n\
\x20           <rdma>N/A</rdma>\n\
\x20         </ports>\n\
\x20         <pid>9300</pid>\n\
\x20       </node>\n\
\x20       <tasks/>\n\
\x20     </volume>\n\
\x20   </volumes>\n\
\x20 </volStatus>\n\
</cliOutput>\n\
";

pub(super) const GET_TIMEOUT: &str = "\
Option                                   Value                                  \n\
------                                   -----                                  \n\
network.ping-timeout                     42 (DEFAULT)                           \n\
";
